"""What `ArchonStrategy` needs of the Trainer and of the LightningModule that it runs, found out before any work."""

from __future__ import annotations

from collections.abc import Iterator

import lightning as L
from lightning.pytorch.plugins.precision import Precision

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.errors import ConfigError, Violation

from .from_rank_zero import Ranks


def check_trainer(spec: ParallelSpec, processes: int, nodes: int, precision: Precision) -> None:
    """Raise ConfigError when a Trainer has not ``spec.world`` processes, or computes in a precision of its own."""
    found = list(_problems(spec, processes, nodes, precision))
    if found:
        raise ConfigError(found)


def _problems(spec: ParallelSpec, processes: int, nodes: int, precision: Precision) -> Iterator[Violation]:
    if nodes * processes != spec.world:
        problem = f"needs {spec.world} processes, the Trainer has {nodes} x {processes}"
        remedy = f"Trainer(devices=..., num_nodes=...) with {spec.world} in all"
        yield Violation("allocation_mode", str(spec), problem, remedy)
    if type(precision) is not Precision:  # its autocast would change the log-probs, silently
        problem = "cannot be set: the strategy computes in its own precision"
        remedy = 'Leave it out; use ArchonStrategy(..., precision="fp32") or "bf16"'
        yield Violation("Trainer(precision)", precision.precision, problem, remedy)


def wrong_strategy(trainer: L.Trainer) -> Violation | None:
    """The violation of a Trainer with another strategy than `ArchonStrategy` (or one with its ranks), or None."""
    if isinstance(trainer.strategy, Ranks):
        return None
    problem = "computes no policy: parallel layouts, log-probs and weight sync are ArchonStrategy's"
    remedy = 'Use Trainer(strategy=ArchonStrategy("d1"))'
    return Violation("Trainer(strategy)", type(trainer.strategy).__name__, problem, remedy)


def check_module(module: L.LightningModule, *, parallelized: bool) -> None:
    """Raise ConfigError when ``module``, whose ``configure_model`` has run, cannot train under the strategy."""
    name, found = type(module).__name__, list[Violation]()
    if not parallelized:
        problem = "has not brought its model to the strategy"
        remedy = "In configure_model: self.model = self.trainer.strategy.parallelize(MODEL_OR_FOLDER)"
        found.append(Violation(f"{name}.configure_model", "", problem, remedy))
    if module.automatic_optimization:
        problem = "the strategy makes the gradients itself, in the order that pipeline schedules need"
        remedy = (
            "Set self.automatic_optimization = False in __init__; in training_step: optimizer.zero_grad(), "
            "strategy.forward_backward(...), strategy.clip_grad_norm(...), optimizer.step()"
        )
        found.append(Violation(f"{name}.automatic_optimization", True, problem, remedy))
    if found:
        raise ConfigError(found)
