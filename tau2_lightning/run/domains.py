"""Several domains in one run: the sections of each, made of what a run of this domain alone would have.

``domain=[telecom,retail]`` chooses several files of ``conf/domain``. Each of them names its domain under ``domains``,
where the command line or an experiment adds what differs: ``domains.retail.weight=2``,
``domains.retail.econfig.max_steps=60``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tau2_lightning.config.domains import OF_THE_RUN
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import masked
from tau2_lightning.errors import ConfigError, Violation

Compose = Callable[[Sequence[str]], dict[str, Any]]


def with_domains(raw: dict[str, Any], words: Sequence[str], compose: Compose) -> dict[str, Any]:
    """``raw``, composed of ``words``, with the whole sections of every domain under ``domains``.

    A run of one domain gets that domain's keys in its own sections, and no ``domains``. Of several domains,
    ``econfig.domain`` becomes their names together. Raises ConfigError that lists the keys that no domain can have, and
    domains that are not part of the run.
    """
    given, here = raw.get("domains"), raw.get("econfig")
    if not isinstance(given, dict) or not isinstance(here, dict):
        return raw  # pydantic tells what is wrong with it
    name = here.get("domain")
    if isinstance(name, list):
        remedy = f"Write domain=[{','.join(map(str, name))}]"
        raise ConfigError([Violation("econfig.domain", name, "is the name of one domain, not a list", remedy)])
    if not isinstance(name, str):
        return raw | {"domains": {}}
    # An experiment may have keys for domains that this run does not have.
    chosen = {name: dict(keys) for name, keys in given.items() if isinstance(keys, dict) and keys.pop("chosen", False)}
    found = [*_absent(words, {*chosen, here.get("domain")}), *_of_the_run(chosen)]
    if len(chosen) > 1 and here.get("domain") not in chosen:
        problem, remedy = f"the run has the domains {', '.join(chosen)}", "Name it in domain=[...]"
        found.append(Violation("econfig.domain", here.get("domain"), problem, remedy))
    if found:
        raise ConfigError(found)
    if len(chosen) < 2:
        own = given.get(here.get("domain"), {})
        return _merged(raw, {key: value for key, value in own.items() if key in OF_THE_RUN}) | {"domains": {}}
    own_words = [word for word in words if not _chooses(word)]
    domains = {}
    for name, keys in chosen.items():
        alone = compose([*own_words, f"domain={name}"])
        sections = {section: alone[section] for section in OF_THE_RUN if section in alone}
        sections["econfig"]["domain"] = name
        domains[name] = _merged(sections, keys)
    return raw | {"domains": domains, "econfig": here | {"domain": "+".join(chosen)}}


def of_every_domain(config: RunConfig, change: Callable[[RunConfig], RunConfig]) -> RunConfig:
    """``config`` with ``change`` applied to the configuration of each domain; the rest of the run stays as it is."""
    if not config.domains:
        return change(config)
    changed = {}
    for name, view in config.by_domain.items():
        new = change(view)
        update = {"econfig": new.econfig, "train_dataset": new.train_dataset, "valid_dataset": new.valid_dataset}
        changed[name] = config.domains[name].model_copy(update=update)
    return config.model_copy(update={"domains": changed})


def _absent(words: Sequence[str], known: set[Any]) -> Iterator[Violation]:
    """Words about a domain that is not part of the run."""
    for word in words:
        key, _, value = word.partition("=")
        mapping, _, rest = key.lstrip("+~").partition(".")
        name = rest.partition(".")[0]
        if mapping == "domains" and name and name not in known:
            shown = masked(key.lstrip("+~"), value)
            yield Violation(key, shown, f"{name} is not a domain of this run", "Add it to domain=[...]")


def _of_the_run(domains: Mapping[str, Mapping[str, Any]]) -> Iterator[Violation]:
    """Keys that no domain can have for itself."""
    for name, keys in domains.items():
        for section, reasons in OF_THE_RUN.items():
            own = keys.get(section)
            if not isinstance(own, Mapping):
                continue
            for one in reasons:
                if one in own:
                    remedy = f"Set {section}.{one} instead: {reasons[one]}"
                    yield Violation(f"domains.{name}.{section}.{one}", own[one], "belongs to the whole run", remedy)


def _chooses(word: str) -> bool:
    """Whether ``word`` chooses domains or sets a key of one."""
    key = word.partition("=")[0].lstrip("+~")
    return key in ("domain", "econfig.domain", "domains") or key.startswith("domains.")


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(base)
    for key, value in changes.items():
        old = out.get(key)
        out[key] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out
