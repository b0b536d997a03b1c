"""Packed rows: the model's input, no attention between rows, and separate rows for algorithms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from tau2_lightning.algorithm import CISPO, GRPO, GSPO, PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.microbatch import MicroBatch, ModelRows, Node
from tau2_lightning.strategy import attention
from tau2_lightning.strategy.inputs import Segments, TokenInputs
from tau2_lightning.strategy.outputs import TokenOutputs
from tests.batch.groups import loss_of, random_groups
from tests.strategy.tiny import clipped_loss, connected, full_gradients, tiny_batches, tiny_model

CPU = torch.device("cpu")


def ragged(lengths: tuple[int, ...] = (3, 1, 2), *, packed: bool = True) -> ModelRows:
    ids = torch.tensor([[5, 6, 7, 0], [8, 0, 0, 0], [9, 10, 0, 0]])
    return ModelRows.of(ids, ids + 100, ids > 5, lengths, packed=packed)


def separate(lengths: list[int], device: torch.device = CPU) -> Segments:
    """Segments of rows that share nothing."""
    ends = np.cumsum(lengths).tolist()
    return Segments([Node(end - size, end, end) for end, size in zip(ends, lengths, strict=True)], device)


def test_rows_lie_side_by_side_and_come_back_as_rows() -> None:
    packed = TokenInputs.of(ragged(), CPU, multiple=4)
    assert packed.input_ids.tolist() == [[5, 6, 7, 8, 9, 10, 0, 0]]
    assert packed.targets.at.tolist() == [[1, 2, 3, 4, 5]]
    assert packed.targets.labels.tolist() == [[106, 107, 108, 109, 110]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 0, 1, 0, 1]]
    assert packed.segments is not None and packed.segments.lengths == [3, 1, 2, 2]
    assert packed.segments.offsets.tolist() == [0, 3, 4, 6, 8] and packed.segments.longest == 3
    found = torch.arange(1.0, 11).reshape(1, 5, 2).requires_grad_()
    back = packed.outputs(found)
    assert back.logprobs.tolist() == [[0, 1, 3, 0], [5, 0, 0, 0], [7, 9, 0, 0]]
    assert back.entropy.tolist() == [[0, 2, 4, 0], [6, 0, 0, 0], [8, 10, 0, 0]]
    back.logprobs.sum().backward()
    assert found.grad is not None and found.grad[0, :, 0].tolist() == [1, 1, 1, 1, 1]


def test_context_ranks_compute_the_targets_of_their_slices() -> None:
    for packed in (True, False):
        rows = ragged(packed=packed)
        whole, cut = TokenInputs.of(rows, CPU, multiple=4), TokenInputs.of(rows, CPU, multiple=4, slices=2)
        hidden = torch.randn(*whole.shape, 2)
        want = whole.outputs(hidden.flatten(0, 1)[whole.targets.at[0]][None])
        parts = [part.flatten(0, 1)[at] for part, at in zip(hidden.chunk(2, 1), cut.targets.at, strict=True)]
        got = cut.outputs(torch.cat(parts)[None])
        assert got.logprobs.tolist() == want.logprobs.tolist() and want.logprobs.any()


def test_padded_rows_stay_as_they_are() -> None:
    padded = TokenInputs.of(ragged(packed=False), CPU, multiple=3)
    assert padded.shape == (3, 6) and padded.segments is None
    assert padded.targets.at.tolist() == [[1, 2, 6, 12, 13]]
    back = padded.outputs(torch.arange(10.0).reshape(1, 5, 2))
    assert back.logprobs.tolist() == [[0, 0, 2, 0], [4, 0, 0, 0], [6, 8, 0, 0]]


def test_rows_without_padding_are_not_packed() -> None:
    found = TokenInputs.of(ragged((4, 4, 4)), CPU, multiple=3)
    assert found.shape == (3, 6) and found.segments is None


def test_a_strategy_builds_no_second_form_of_the_collated_tokens() -> None:
    for packed in (True, False):
        rows = ragged(packed=packed)
        inputs = TokenInputs.of(rows, CPU)
        for name in ("input_ids", "trained"):
            assert getattr(inputs, name).data_ptr() == getattr(rows, name).data_ptr(), "tokens were copied"


def test_packed_rows_are_refused_where_the_model_computes_padded_ones() -> None:
    compute = connected("d1", packing=False)
    compute.parallelize(tiny_model(layers=1))
    with pytest.raises(ValueError, match="packed=False"):
        compute.token_outputs(tiny_batches())


def test_a_cpu_attends_in_float32_under_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's backward in bfloat16 is so slow on a CPU that a warm start took 2.7 times as long."""
    kernel = torch.nn.functional.scaled_dot_product_attention
    seen: set[torch.dtype] = set()

    def watched(*tensors: torch.Tensor, **options: object) -> torch.Tensor:
        seen.update(x.dtype for x in tensors[:3])
        out = kernel(*tensors, **options)  # type: ignore[arg-type]
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    found = []
    for precision in ("fp32", "bf16"):
        compute = connected("d1", precision=precision)
        compute.parallelize(tiny_model())
        compute.forward_backward(tiny_batches(), clipped_loss)
        found.append(torch.cat([gradient.flatten() for gradient in full_gradients(compute).values()]))
        assert seen == {torch.float32}
    exact, rounded = found
    assert 0.999 < torch.nn.functional.cosine_similarity(exact, rounded, dim=0) < 1.0


def test_one_by_one_equals_a_block_diagonal_mask() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 9, 8, requires_grad=True) for heads in (4, 2, 2))
    segments = separate([4, 1, 4])
    row = torch.tensor([0] * 4 + [1] + [2] * 4)
    mask = (row[:, None] == row) & torch.ones(9, 9, dtype=torch.bool).tril()
    got = attention._one_by_one(query, key, value, segments.lengths, 0.3)
    want = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(got, want)
    weight = torch.randn_like(got)
    for a, b in zip(
        *(torch.autograd.grad((each * weight).sum(), (query, key, value)) for each in (got, want)), strict=True
    ):
        torch.testing.assert_close(a, b)
    assert not attention.has_varlen(query.half())  # that kernel is CUDA's


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen3_moe"])
def test_packed_equals_padded(family: str) -> None:
    found = []
    for packing in (True, False):
        compute = connected("d1", packing=packing)
        compute.parallelize(tiny_model(family=family))
        assert compute.packs == packing
        found.append(compute.token_outputs(tiny_batches(packed=packing), temperature=0.8))
    for packed, padded in zip(*found, strict=True):
        torch.testing.assert_close(packed.logprobs, padded.logprobs, atol=5e-6, rtol=0)
        torch.testing.assert_close(packed.entropy, padded.entropy, atol=5e-6, rtol=0)


def test_negative_control_rows_that_see_each_other_show(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    want = compute.token_outputs(tiny_batches())
    monkeypatch.setattr(attention, "_one_by_one", lambda q, k, v, segments, *a: _one_row(q, k, v))
    got = compute.token_outputs(tiny_batches())
    assert max(float((a.logprobs - b.logprobs).abs().max()) for a, b in zip(got, want, strict=True)) > 1e-2


def _one_row(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    attend: Callable[..., torch.Tensor] = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)


@pytest.mark.parametrize(
    "algorithm",
    [
        GRPO(aggregation="sequence_mean", proximal="recompute", importance_level="sequence", rejection="geometric"),
        GSPO(kl_ctl=0.1),
        CISPO(aggregation="constant_length", constant_length=20, kl_ctl=0.1, kl_in="reward", entropy_coef=0.01),
    ],
    ids=lambda algorithm: type(algorithm).__name__,
)
def test_whatever_an_algorithm_does_per_row_is_right_for_packed_rows(algorithm: PolicyGradient) -> None:
    batch = Batch.from_groups(random_groups(3, 2, 3), algorithm, version=2)
    generator = np.random.default_rng(0)
    for name in ("proximal_logprobs", "reference_logprobs"):
        noise = {r.row_id: generator.normal(-5, 1, len(r)).astype(np.float32) for r in batch.rows}
        batch = batch.with_column(name, noise)

    def loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return loss_of(algorithm, outputs.logprobs, outputs.entropy, mb)

    found = []
    for packing, budget in ((True, 40), (True, 10_000), (False, 1)):  # few packed rows, all in one, each alone
        compute = connected("d1", packing=packing)
        compute.parallelize(tiny_model(layers=2))
        out = compute.forward_backward(batch.microbatches(budget, packed=packing), loss)
        found.append((out, full_gradients(compute)))
    want, alone = found[-1]
    assert float(want.metrics["rows"]) == len(batch) and float(want.loss) != 0.0
    for out, gradients in found[:-1]:
        for name, value in want.metrics.items():
            assert float(out.metrics[name]) == pytest.approx(float(value), rel=2e-5, abs=1e-6), name
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, alone[name], atol=1e-6, rtol=1e-5)


def test_compiled_layers_are_not_compiled_anew_for_other_lengths() -> None:
    """The number and lengths of rows differ each time: dynamo must not specialise on them."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    counter = CompileCounter()
    module = torch.nn.Module()
    module.cp_group, module.is_causal = None, True  # type: ignore[assignment]

    @torch.compile(backend=counter, dynamic=True)
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, segments: Segments) -> torch.Tensor:
        return attention.attend(module, 2 * q, k, v, None, segments)[0] + 1.0

    compiled = []
    for lengths in ([3, 4, 9], [5, 6], [2, 2, 2, 7, 3], [10, 30]):
        q, k, v = (torch.randn(1, heads, sum(lengths), 8) for heads in (4, 2, 2))
        segments = separate(lengths)
        want = attention._one_by_one(2 * q, k, v, lengths, 8**-0.5) + 1.0
        torch.testing.assert_close(attend(q, k, v, segments), want)
        compiled.append(counter.frame_count)
    assert compiled[0] > 0 and set(compiled) == {compiled[0]}
