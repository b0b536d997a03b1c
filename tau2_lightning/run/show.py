"""The output of ``--cfg`` and ``--info``: the composed configuration and its composition by Hydra, without secrets."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import Container, DictConfig, OmegaConf, open_dict

from tau2_lightning.config.redaction import redacted
from tau2_lightning.config.schema import SECRETS
from tau2_lightning.config.secrets import HIDDEN, OPEN_MAPPINGS, is_secret_word, masked
from tau2_lightning.errors import ConfigError, Violation

from .compose import hydra_errors, hydra_program
from .words import JOB, hydra_words


def configuration(words: Sequence[str], kind: str, package: str | None, resolve: bool) -> None:
    """Print the configuration of ``words`` as YAML. ``kind``: ``job`` is this project's part, ``hydra`` Hydra's,
    ``all`` both.

    ``package`` is the dotted key of the section that is printed. Raises ConfigError as `hydra_words` does.
    """
    with hydra_errors(words), hydra_program() as hydra:
        config = hydra.compose_config(JOB, hydra_words(_hidden(words)), RunMode.RUN, with_log_configuration=False)
        _hide(config)
        HydraConfig.instance().set_config(config)  # what ${hydra:...} refers to
        try:
            _print(hydra.get_sanitized_cfg(config, kind), package, resolve)
        finally:
            HydraConfig.instance().cfg = None


def information(words: Sequence[str], about: str) -> None:
    """Print Hydra's information about ``about``: its plugins, search path, defaults list or configuration."""
    with hydra_errors(words), hydra_program() as hydra:
        hydra.show_info(about, JOB, hydra_words(_hidden(words)))


def _print(config: DictConfig, package: str | None, resolve: bool) -> None:
    section = config if package in (None, "_global_") else OmegaConf.select(config, str(package))
    if section is None:
        known = [str(key) for key in config]
        raise ConfigError([Violation("--package", package, "no such section", f"Sections: {', '.join(known)}")])
    if isinstance(section, Container):
        sys.stdout.write(redacted(OmegaConf.to_yaml(section, resolve=resolve)))
    else:
        print(redacted(str(section)))


def _hidden(words: Sequence[str]) -> list[str]:
    """``words`` with the values of secrets hidden: Hydra prints the words too."""
    return [f"{word.partition('=')[0]}='{HIDDEN}'" if is_secret_word(word) else word for word in words]


def _hide(config: DictConfig) -> None:
    """Secrets that come from files and not from words."""
    with open_dict(config):
        for section in {mapping.partition(".")[0] for mapping in (*OPEN_MAPPINGS, *SECRETS)} & config.keys():
            config[section] = masked(section, OmegaConf.to_container(config[section]))
