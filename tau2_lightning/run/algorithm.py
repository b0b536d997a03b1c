"""The algorithm that the configuration names."""

from __future__ import annotations

from hydra.utils import instantiate

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation


def instantiate_algorithm(config: RunConfig) -> PolicyGradient:
    """The algorithm named by ``algorithm._target_``. Raises ConfigError for arguments that it does not accept."""
    target = config.algorithm.get("_target_")
    try:
        algorithm = instantiate(config.algorithm)
    except Exception as error:
        # Hydra wraps the errors of a constructor; the reason is on the later lines.
        reason = " ".join(str(error).split("\n")[1:]) or str(error)
        raise ConfigError([Violation("algorithm", target, reason.strip(), "See conf/algorithm/")]) from error
    if not isinstance(algorithm, PolicyGradient):
        remedy = "Subclass tau2_lightning.algorithm.PolicyGradient"
        raise ConfigError([Violation("algorithm._target_", target, "is no PolicyGradient", remedy)])
    return algorithm
