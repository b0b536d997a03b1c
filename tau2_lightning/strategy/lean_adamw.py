"""AdamW (arXiv:1711.05101) that keeps its moments in fewer bytes, or in the host's memory.

The update itself is float32 and torch's own, operation by operation: with float32 moments the weights are, bit for bit,
those of ``torch.optim.AdamW(foreach=False)`` on a CPU. Each parameter is updated in pieces, so that what is computed
beside the moments stays small however large an embedding is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .moments import Moment, MomentFormat, load, store

#: Numbers that are updated at once: 16 MiB each of gradient, moments and temporaries.
PIECE = 1 << 22
_SLOTS = (("exp_avg", True), ("exp_avg_sq", False))  # names of the moments, and whether they have a sign


class LeanAdamW(torch.optim.Optimizer):
    """AdamW over ``parameters`` with moments in the format ``kept``, in the host's memory if ``offload`` is set.

    Moments are fetched to the parameter's device piece by piece and written back. ``state_format`` names the format in
    checkpoints.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        kept: MomentFormat = "float32",
        offload: bool = False,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay})
        self.state_format, self.offload = kept, offload

    def empty_state(self, parameter: Tensor) -> dict[str, Tensor]:
        """The tensors of the state of ``parameter`` before the first step, by name."""
        moment = Moment.of(parameter, self.state_format)
        device = torch.device("cpu") if self.offload else parameter.device
        made = {"step": torch.zeros(())}  # as torch's AdamW counts
        for name, _ in _SLOTS:
            made |= moment.zeros(parameter, name, device)
        return made

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update of every parameter that has a gradient."""
        found = None
        if closure is not None:
            with torch.enable_grad():
                found = closure()
        for group in self.param_groups:
            for index, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    state = self.state[parameter]
                    if not state:
                        state.update(self.empty_state(parameter))
                    state["step"] += 1
                    _update(parameter, state, group, int(state["step"]), index)
        if self.offload and torch.cuda.is_available():
            torch.cuda.current_stream().synchronize()  # the host may read the moments now
        return found


def _update(parameter: Tensor, state: dict[str, Any], group: dict[str, Any], step: int, index: int) -> None:
    weights = _rows(_local(parameter))
    gradient = _local(parameter.grad).reshape(weights.shape)
    seed = 1_000_003 * step + 2 * index
    slots = {key: _rows(_local(value)) for key, value in state.items() if key != "step"}
    for number, rows in enumerate(_pieces(weights)):
        at = [(slots[name][rows], _part(slots.get(f"{name}_scale"), rows), signed) for name, signed in _SLOTS]
        mean, square = (load(values, scales, signed=signed, device=weights.device) for values, scales, signed in at)
        _adamw(weights[rows], gradient[rows].float(), mean, square, step, group)
        for moment, (values, scales, signed) in zip((mean, square), at, strict=True):
            store(moment, values, scales, signed=signed, seed=(seed + signed + 7_368_787 * number) % (1 << 62))


def _adamw(weight: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, step: int, group: dict[str, Any]) -> None:
    """w <- (1 - lr wd) w - lr / (1 - b1^k) m / (sqrt(v / (1 - b2^k)) + eps), m and v updated in place before."""
    first, second = group["betas"]
    weight.mul_(1 - group["lr"] * group["weight_decay"])
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    corrections = 1 - first**step, (1 - second**step) ** 0.5
    denominator = (square.sqrt() / corrections[1]).add_(group["eps"])
    weight.addcdiv_(mean, denominator, value=-(group["lr"] / corrections[0]))


def _pieces(weights: Tensor) -> Iterator[slice]:
    """Rows of at most about `PIECE` numbers."""
    if weights.numel():
        size = max(1, PIECE // weights.shape[1])
        yield from (slice(start, start + size) for start in range(0, weights.shape[0], size))


def _part(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _rows(local: Tensor) -> Tensor:
    """A view [rows, last dimension]; a vector is one row."""
    return local.view(-1, local.shape[-1]) if local.ndim > 1 else local.view(1, -1)


def _local(tensor: Any) -> Tensor:
    found: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return found
