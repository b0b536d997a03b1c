"""Random micro-batches for the tests: ragged and masked, with ratios from ordinary to extreme."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.algorithm.oracles import Case


@st.composite
def microbatches(draw: st.DrawFn, constant_advantages: bool = False) -> dict[str, Tensor]:
    """A float64 micro-batch with every optional column; masks may be empty, ratios may reach exp(40)."""
    rows, width = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spread = draw(st.sampled_from([0.0, 0.05, 0.5, 3.0, 40.0]))
    mask = rng.random((rows, width)) < draw(st.sampled_from([0.0, 0.3, 0.7, 1.0]))
    behaviour = -rng.exponential(2.0, (rows, width))
    near = lambda: behaviour + spread * rng.standard_normal((rows, width))  # noqa: E731
    shape = (rows, 1) if constant_advantages else (rows, width)
    advantages = np.broadcast_to(rng.standard_normal(shape) * (rng.random(shape) < 0.8), (rows, width))
    extra_tokens, extra_rows = draw(st.integers(0, 9)), draw(st.integers(0, 3))
    tensors = {
        "logprobs": near(),
        "entropy": rng.random((rows, width)),
        "behaviour_logprobs": behaviour,
        "proximal_logprobs": near(),
        "reference_logprobs": near(),
        "advantages": advantages.copy(),
        "chosen": (rng.random((rows, width)) < 0.3).astype(np.float64),
        "n_tokens": np.float64(max(mask.sum() + extra_tokens, 1)),
        "n_rows": np.float64(rows + extra_rows),
    }
    out = {name: torch.as_tensor(value, dtype=torch.float64) for name, value in tensors.items()}
    out["loss_mask"] = torch.as_tensor(mask)
    out["versions"] = torch.as_tensor(rng.integers(0, 8, (rows, width)), dtype=torch.int32)
    out["version"] = torch.tensor(7, dtype=torch.int32)
    return out


def as_case(mb: dict[str, Tensor], **knobs: object) -> Case:
    return Case(
        logp=mb["logprobs"].tolist(),
        behaviour=mb["behaviour_logprobs"].tolist(),
        advantages=mb["advantages"].tolist(),
        mask=mb["loss_mask"].tolist(),
        entropy=mb["entropy"].tolist(),
        n_tokens=float(mb["n_tokens"]),
        n_rows=float(mb["n_rows"]),
        reference=mb["reference_logprobs"].tolist(),
        proximal=mb["proximal_logprobs"].tolist() if "proximal_logprobs" in mb else (),
        versions=mb["versions"].tolist(),
        chosen=mb["chosen"].tolist(),
        version=int(mb["version"]),
        knobs=dict(knobs),
    )


def loss_and_gradients(algorithm, mb: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    logprobs = mb["logprobs"].clone().requires_grad_()
    entropy = mb["entropy"].clone().requires_grad_()
    loss, metrics = algorithm.loss(logprobs, entropy, mb)
    loss.backward()
    assert logprobs.grad is not None
    zero = torch.zeros_like(logprobs)
    return loss.detach(), logprobs.grad, entropy.grad if entropy.grad is not None else zero, metrics
