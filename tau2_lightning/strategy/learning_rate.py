"""The learning rate over the optimizer steps of a run."""

from __future__ import annotations


def lr_factor(step: int, *, total: float, warmup: int, final: float) -> float:
    """Learning-rate factor of optimizer step ``step`` of ``total``: a linear rise over ``warmup``, a fall to ``final``.

    Steps beyond ``total`` (a resumed run made longer) keep the last factor. With an infinite ``total`` it never falls.
    """
    rise = min(1.0, (step + 1) / max(1, warmup))
    fallen = min(1.0, max(0, step - warmup) / max(1, total - 1 - warmup))
    return rise * (1.0 - (1.0 - final) * fallen)
