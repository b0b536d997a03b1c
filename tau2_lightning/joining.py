"""Whether a Trainer, a GRPOModule and a Tau2DataModule fit each other: found out before an engine starts.

The main job makes all three of one configuration. In a script each may come from somewhere else, and what does not fit
would mostly train on, on wrong numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from tau2_lightning.algorithm import PolicyGradient
from tau2_lightning.datamodule import Tau2DataModule
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.strategy.in_trainer import wrong_strategy

OWN_STEPS = "the module makes its optimizer steps itself, in the order that pipeline schedules need"


class Joined(Protocol):
    """The part of a GRPOModule that the datamodule's must equal."""

    policy_path: str
    algorithm: PolicyGradient
    temperature: float


def join(module: Joined, trainer: L.Trainer | None) -> None:
    """Raise ConfigError that lists everything in which ``trainer``, its datamodule and ``module`` do not fit.

    Switches off the Trainer's sanity check, which would play a whole validation and log none of it. Does nothing
    without a Trainer.
    """
    if trainer is None:
        return
    found = [*_of_trainer(trainer), *_of_data(module, getattr(trainer, "datamodule", None))]
    if found:
        raise ConfigError(found)
    trainer.num_sanity_val_steps = 0


def _of_trainer(trainer: L.Trainer) -> Iterator[Violation]:
    wrong = wrong_strategy(trainer)
    if wrong is not None:
        yield wrong
    if trainer.accumulate_grad_batches != 1:
        remedy = (
            "Leave it out; train_dataset.batch_size is the size of a batch, actor.max_tokens_per_mb (of GRPOModule: "
            "max_tokens_per_mb) that of a micro-batch"
        )
        yield Violation("Trainer(accumulate_grad_batches)", trainer.accumulate_grad_batches, OWN_STEPS, remedy)
    if trainer.gradient_clip_val:
        remedy = "Leave it out; use actor.optimizer.gradient_clipping"
        yield Violation("Trainer(gradient_clip_val)", trainer.gradient_clip_val, OWN_STEPS, remedy)


def _of_data(module: Joined, data: Any) -> Iterator[Violation]:
    if not isinstance(data, Tau2DataModule):
        given = "" if data is None else type(data).__name__
        remedy = "Use trainer.fit(module, datamodule=Tau2DataModule(...)), and the same for validate"
        yield Violation("datamodule", given, "the module needs a Tau2DataModule, which plays its episodes", remedy)
        return
    rollouts, temperature = data.rollouts, data.config.gconfig.temperature
    if Path(module.policy_path).absolute() != rollouts.policy.absolute():
        problem = f"is not the policy of the datamodule, {rollouts.policy}: the engine would serve other weights"
        yield Violation("GRPOModule(policy)", module.policy_path, problem, "Give both the same folder")
    if module.algorithm is not rollouts.algorithm and module.algorithm != rollouts.algorithm:
        problem = f"is not the algorithm of the datamodule, {rollouts.algorithm}: advantages would be of another loss"
        yield Violation("GRPOModule(algorithm)", str(module.algorithm), problem, "Give both the same algorithm")
    if module.temperature != temperature:
        problem = f"is not the temperature of the rollouts, gconfig.temperature={temperature:g}"
        remedy = "Use GRPOModule.of(config, policy, algorithm), which takes all of this from the configuration"
        yield Violation("GRPOModule(temperature)", module.temperature, problem, remedy)
