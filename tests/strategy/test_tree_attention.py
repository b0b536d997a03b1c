"""Attention over a forest equals attention with the dense mask of what each token may see; so does its gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, library
from torch.nn import functional as F

from tau2_lightning.microbatch import Node
from tau2_lightning.strategy import tree_attention
from tau2_lightning.strategy.inputs import Segments
from tau2_lightning.strategy.kept_prefix import Kept, KeptPrefix, joined
from tau2_lightning.strategy.tree_attention import attend_forest, block_mask

CPU = torch.device("cpu")


@st.composite
def forests(draw: st.DrawFn) -> tuple[Node, ...]:
    """Random forests, laid out depth first; nodes of one to six tokens, no node with one branch."""

    def grow(start: int, depth: int) -> list[Node]:
        end = start + draw(st.integers(1, 6))
        branches = draw(st.sampled_from([0, 0, 2, 3])) if depth < 3 else 0
        below, found = end, list[Node]()
        for _ in range(branches):
            found += grow(below, depth + 1)
            below = found[-1].below if found[-1].below > below else max(node.below for node in found)
        return [Node(start, end, below), *found]

    nodes: list[Node] = []
    for _ in range(draw(st.integers(1, 3))):
        nodes += grow(max((node.below for node in nodes), default=0), 0)
    return tuple(nodes)


def mask_of(nodes: tuple[Node, ...]) -> Tensor:
    """[N, N] bool: whether token i may see token j, pair by pair."""
    size = max(node.below for node in nodes)
    mask = torch.zeros(size, size, dtype=torch.bool)
    for node in nodes:
        for j in range(node.start, node.end):
            mask[j : node.below, j] = True
    return mask


def tensors(size: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (1, 4, size, 8), (1, 2, size, 8), (1, 2, size, 8)
    return [torch.randn(*shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]


def dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


@given(forests(), st.integers(0, 1000))
def test_results_and_gradients_equal_those_of_the_dense_mask(nodes: tuple[Node, ...], seed: int) -> None:
    mask = mask_of(nodes)
    query, key, value = tensors(len(mask), seed)
    segments = Segments(nodes, CPU)
    got, want = attend_forest(query, key, value, segments, 0.4), dense(query, key, value, mask, 0.4)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(seed + 1))
    ours, theirs = (torch.autograd.grad((out * weight).sum(), (query, key, value)) for out in (got, want))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


#   0 1 2 3 | 4 5 | 6 7 8 | 9 10     a trunk with two branches, the first of which has two
TREE = (Node(0, 2, 9), Node(2, 4, 7), Node(4, 5, 5), Node(5, 7, 7), Node(7, 9, 9))


@pytest.mark.parametrize("wrong", [(6, 4), (8, 3)])
def test_negative_control_one_wrong_edge_shows(wrong: tuple[int, int]) -> None:
    mask = mask_of(TREE)
    assert not mask[wrong]
    mask[wrong] = True
    query, key, value = tensors(9)
    got, want = attend_forest(query, key, value, Segments(TREE, CPU), 8**-0.5), dense(query, key, value, mask, 8**-0.5)
    assert float((got - want).abs().max()) > 1e-3


def test_the_gpu_mask_shows_each_token_the_same_tokens() -> None:
    """FlexAttention's mask, evaluated for all pairs; its kernel needs a GPU."""
    found: Any = block_mask(Segments(TREE, CPU), CPU)
    index = torch.arange(9)
    visible = found.mask_mod(index[:1], index[:1], index[:, None], index[None])
    assert torch.equal(visible, mask_of(TREE))


def test_flex_attention_equals_the_blocks() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    query, key, value = (x.detach() for x in tensors(9))
    segments = Segments(TREE, CPU)
    theirs = flex_attention(query, key, value, block_mask=block_mask(segments, CPU), scale=0.3, enable_gqa=True)
    assert isinstance(theirs, Tensor)
    torch.testing.assert_close(attend_forest(query, key, value, segments, 0.3), theirs.transpose(1, 2))


def test_nothing_that_is_masked_is_computed() -> None:
    pairs = sum((own.stop - own.start) * (seen.stop - seen.start) for own, seen, causal in blocks() if not causal)
    causal = sum((own.stop - own.start) * (own.stop - own.start + 1) // 2 for own, _, causal in blocks() if causal)
    assert pairs + causal == int(mask_of(TREE).sum())


@given(forests(), st.integers(1, 9), st.integers(0, 4), st.integers(0, 1000))
def test_a_kept_prefix_is_seen_by_all_and_its_gradients_are_added_up(
    nodes: tuple[Node, ...], first: int, second: int, seed: int
) -> None:
    """A prefix of ``first`` tokens, and one of ``second`` that continues it."""
    before, sizes = first + second, [size for size in (first, second) if size]
    mask = F.pad(mask_of(nodes), (before, 0), value=True)
    query, key, value = tensors(mask.shape[1], seed)
    query = query.detach()[:, :, before:].clone().requires_grad_()
    parts = [x.detach().split([*sizes, mask.shape[0]], 2) for x in (key, value)]
    own_key, own_value = own = [some[-1].clone().requires_grad_() for some in parts]
    values = [x for pair in zip(parts[0][:-1], parts[1][:-1], strict=True) for x in pair]
    kept = Kept(values, [torch.ones_like(x) for x in values])
    prefix = KeptPrefix(first)
    segments = Segments(nodes, CPU, KeptPrefix(second, prefix) if second else prefix)
    got, want = attend_forest(query, own_key, own_value, segments, 0.4, kept), dense(query, key, value, mask, 0.4)
    torch.testing.assert_close(got, want, atol=2e-6, rtol=0)
    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(seed + 1))
    ours = torch.autograd.grad((got * weight).sum(), (query, *own))
    theirs = torch.autograd.grad((want * weight).sum(), (query, key, value))
    sums = [torch.cat([*(x - 1 for x in kept.sums[i::2]), ours[i + 1]], 2) for i in (0, 1)]
    for a, b in zip((ours[0], *sums), theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    # A kernel that takes one tensor only gets them joined.
    joint_key, joint_value = joint = [x.detach().clone().requires_grad_() for x in own]
    other = Kept(values, [torch.ones_like(x) for x in values])
    torch.autograd.backward(joined(joint_key, joint_value, other), theirs[1:])
    for a, b in zip((*other.sums, *(x.grad for x in joint)), (*kept.sums, *ours[1:]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def blocks() -> list[tuple[slice, slice, bool]]:
    return list(tree_attention._blocks(torch.tensor(TREE), 0))


def test_the_operator_keeps_torchs_rules() -> None:
    nodes = torch.tensor(TREE)
    library.opcheck(tree_attention.forest_attention, (*tensors(9), nodes, [], [], 0.5))
