"""The rules for what is played, which need tau2, and the values that replace ``null`` in it."""

from __future__ import annotations

from tau2_lightning.config.environment import EnvironmentConfig
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment.settings import DomainInfo, environment_settings
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.warm_start.required import required_reward

from .domains import of_every_domain


def check_environment(config: RunConfig) -> tuple[RunConfig, list[Violation]]:
    """The configuration with every ``null`` of its domains resolved, and what is wrong with them."""
    found: list[Violation] = []
    several = bool(config.domains)

    def checked(view: RunConfig) -> RunConfig:
        prefix = f"domains.{view.econfig.domain}." if several else ""
        try:
            view, problems = _check_domain_of(view, prefix)
        except ConfigError as error:  # a domain that tau2 does not have
            problems = [*error.violations]
        found.extend(problems)
        return view

    return of_every_domain(config, checked), found


def resolved_where_known(config: RunConfig) -> RunConfig:
    """The configuration with every ``null`` resolved in those domains that tau2 has; of others nothing is known."""
    from tau2_lightning.environment import check_tau2, describe_domain

    def resolved(view: RunConfig) -> RunConfig:
        try:
            return _resolved(view, describe_domain(view.econfig.domain))
        except ConfigError:
            return view

    return config if check_tau2() else of_every_domain(config, resolved)


def user_of(e: EnvironmentConfig) -> str | None:
    """The kind of user that ``econfig`` chooses; None where it chooses none."""
    return e.user or ("llm" if e.user_llm or e.user_llm_base_url or e.user_engine.path else None)


def _resolved(config: RunConfig, info: DomainInfo) -> RunConfig:
    e, user = config.econfig, user_of(config.econfig)
    solo = e.solo_mode if e.solo_mode is not None else (info.has_solo and user is None)
    policy = e.policy or ("ticket" if config.tiny and solo else "full")
    changed = {"user": user, "solo_mode": solo, "policy": policy}
    config = config.model_copy(update={"econfig": e.model_copy(update=changed)})
    warm_start = config.warm_start.model_copy(update={"require_reward": required_reward(config)})
    return config.model_copy(update={"warm_start": warm_start})


def _check_domain_of(config: RunConfig, prefix: str) -> tuple[RunConfig, list[Violation]]:
    """`check_environment` of one domain's configuration. ``prefix`` comes before the keys of its sections."""
    from tau2_lightning.environment import check_domain, check_split, check_tau2, describe_domain

    if broken := check_tau2():
        return config, broken
    info = describe_domain(config.econfig.domain)
    config = _resolved(config, info)
    e, found = config.econfig, []
    if not e.solo_mode and e.user is None:
        found.append(
            Violation(
                f"{prefix}econfig.user_llm_base_url",
                None,
                f"{e.domain} needs a user simulator" + ("" if info.has_solo else " (it has no solo mode)"),
                "Set econfig.user_llm_base_url=http://.../v1, econfig.user_llm=<model>, "
                "econfig.user_engine.path=<model>, or econfig.user=scripted",
            )
        )
    else:
        settings = environment_settings(e)
        found += check_domain(settings, f"{prefix}econfig") or check_tau2(settings)
    for key, split in (("train_dataset", config.train_dataset.split), ("valid_dataset", config.valid_dataset.split)):
        found += check_split(e.domain, split, f"{prefix}{key}.split", solo_mode=bool(e.solo_mode))
    return config, found
