"""Tests that need a GPU: FlexAttention over a forest, with a kept prefix, and a step of a forest under bfloat16.

    pytest -m gpu tests/strategy/test_tree_cuda.py

The oracle is the dense mask in float32 on the same GPU; the forest is long enough for several blocks of the kernel.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import Qwen3ForCausalLM

from tau2_lightning.algorithm import GRPO
from tau2_lightning.microbatch import Node
from tau2_lightning.strategy.inputs import Segments
from tau2_lightning.strategy.kept_prefix import KeptPrefix
from tau2_lightning.strategy.tree_attention import attend_forest
from tests.strategy.families.models import CONFIGS
from tests.strategy.test_cuda import off
from tests.strategy.test_tree_attention import mask_of
from tests.strategy.test_tree_training import batch, behind_a_system_prompt, gradients
from tests.strategy.tiny import connected

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

#: A trunk of 200 tokens with two branches, the first of which has two; and another tree of 77 tokens.
FOREST = (
    Node(0, 200, 523), Node(200, 333, 460), Node(333, 400, 400), Node(400, 460, 460), Node(460, 523, 523),
    Node(523, 600, 600),
)  # fmt: skip


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("before", [0, 150])
def test_flex_attention_equals_the_dense_mask(width: int, dtype: torch.dtype, tolerance: float, before: int) -> None:
    torch.manual_seed(0)
    device, size = torch.device("cuda"), FOREST[-1].below
    sizes = (1, 8, size, width), (1, 2, before + size, width), (1, 2, before + size, width)
    exact = [torch.randn(shape, device=device).to(dtype).float().requires_grad_() for shape in sizes]
    given = [x.detach().to(dtype).requires_grad_() for x in exact]
    segments = Segments(FOREST, device, KeptPrefix(before) if before else None)
    mask = F.pad(mask_of(FOREST), (before, 0), value=True).to(device)
    query, key, value = exact
    want = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.2, enable_gqa=True).transpose(1, 2)
    got = attend_forest(given[0], given[1], given[2], segments, 0.2)
    weight = torch.randn_like(want)
    (want * weight).sum().backward()
    (got.float() * weight).sum().backward()
    assert off(got.float(), want) < tolerance
    for a, b in zip(given, exact, strict=True):
        assert a.grad is not None and b.grad is not None and off(a.grad.float(), b.grad) < 2 * tolerance
    # Control: one token that sees a branch that it must not see changes the result.
    mask[450, before + 380] = True
    wrong = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=0.2, enable_gqa=True)
    assert float((wrong.transpose(1, 2) - want).detach().abs().max()) > 10 * 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_of_a_forest_equals_that_of_separate_rows(precision: str) -> None:
    torch.manual_seed(0)
    compute = connected("d1", torch.device("cuda"), precision=precision)
    compute.parallelize(Qwen3ForCausalLM(CONFIGS["Qwen3"](16)))
    assert compute.shares
    for rows, budget in ((batch(), 10**6), (behind_a_system_prompt(), 60)):
        ours, theirs = (gradients(compute, rows, b, shared, GRPO()) for b, shared in ((budget, True), (400, False)))
        worst: Tensor = torch.stack([(ours[name] - theirs[name]).norm() / theirs[name].norm() for name in theirs]).max()
        assert float(worst) < (1e-2 if precision == "fp32" else 5e-2)
