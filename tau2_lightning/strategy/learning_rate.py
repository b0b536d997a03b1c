"""The learning rate over the planned optimizer steps of a run."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from tau2_lightning.config.actor import OptimizerConfig


def lr_factor(step: int, *, total: float, warmup: int, final: float) -> float:
    """Learning-rate factor of optimizer step ``step`` of ``total``: a linear rise over ``warmup``, a fall to ``final``.

    Steps beyond ``total`` (a resumed run made longer) keep the last factor. With an infinite ``total`` it never falls.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    fallen = min(1.0, max(0, step - warmup) / max(1, total - 1 - warmup))
    return rise * (1.0 - (1.0 - final) * fallen)


def planned_schedule(optimizer: Optimizer, total: float, warmup: int, final: float) -> LambdaLR:
    """``lr_factor`` by *planned* optimizer steps, of which every training batch has the same number.

    Its ``step`` is called for each of them, made or left out (a minibatch without signal, a batch with too few
    episodes). So the rate depends on the number of the batch only, and reaches ``final`` when the planned batches end.
    """
    return LambdaLR(optimizer, partial(lr_factor, total=total, warmup=warmup, final=final))


def scale(optimizer: Optimizer, scheduler: LambdaLR, factor: float) -> None:
    """Let the rates of ``scheduler``, a ``planned_schedule``, be ``factor`` times the configured ones from now on."""
    scheduler.base_lrs = [group["initial_lr"] * factor for group in optimizer.param_groups]
    for group, base, shape in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * shape(scheduler.last_epoch)


def as_configured(optimizer: Optimizer, scheduler: LambdaLR, total: float, settings: OptimizerConfig) -> None:
    """Give ``optimizer`` and its ``planned_schedule`` over ``total`` steps these settings, at the step it has reached.

    A checkpoint brings the settings that it was made with; a resumed run's own configuration is what counts.
    """
    factor = partial(lr_factor, total=total, warmup=settings.warmup_steps, final=settings.final_lr_fraction)
    scheduler.base_lrs = [settings.lr] * len(optimizer.param_groups)
    scheduler.lr_lambdas = [factor] * len(optimizer.param_groups)
    own: dict[str, Any] = {
        "initial_lr": settings.lr,
        "lr": settings.lr * factor(scheduler.last_epoch),
        "eps": settings.eps,
    }
    own |= {"betas": tuple(settings.betas), "weight_decay": settings.weight_decay}
    for group in optimizer.param_groups:
        group |= own
