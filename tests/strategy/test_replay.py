"""Router replay: recorded experts are chosen again, in every layout, and weighed by the trainer's own router."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch, ModelRows, RoutedExperts
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.mesh import Mesh
from tau2_lightning.strategy.replay import Choices
from tests.strategy.distributed import fork
from tests.strategy.test_compute import transformers_outputs
from tests.strategy.tiny import CPU, clipped_loss, connected, full_gradients, number_of, share, tiny_batches, tiny_model

LAYERS, EXPERTS, USED = 4, 4, 2


def model() -> Any:
    found = tiny_model(family="qwen3_moe")
    with torch.no_grad():  # as initialised, routers are nearly indifferent and experts do nearly nothing
        for name, parameter in found.named_parameters():
            if "mlp" in name:
                parameter.normal_(0.0, 0.5, generator=torch.Generator().manual_seed(len(name)))
    return found


def routed_of(mb: MicroBatch, index: Tensor, known: Tensor) -> MicroBatch:
    """``mb`` with ``index`` [B, T, layers, k] and ``known`` [B, T], in the shape of its model view."""
    rows = mb["model"]
    routed = RoutedExperts(index.to(torch.uint8), known)
    if rows.nodes is not None:
        real = torch.arange(known.shape[1]) < mb["lengths"][:, None]
        routed = RoutedExperts(routed.index[real][None], known[real][None])
    return {**mb, "model": replace(rows, routed=routed)}


def planted(mb: MicroBatch) -> Tensor:
    """Experts [B, T, layers, k] that no router would choose: drawn, two different ones for each position and layer."""
    generator = torch.Generator().manual_seed(number_of(mb))
    draws = torch.rand(*mb["labels"].shape, LAYERS, EXPERTS, generator=generator)
    return draws.argsort(-1)[..., :USED]


def with_planted(batches: list[MicroBatch]) -> list[MicroBatch]:
    return [routed_of(mb, planted(mb), torch.ones(mb["labels"].shape, dtype=torch.bool)) for mb in batches]


@contextmanager
def forced(oracle: Any, mb: MicroBatch, row: list[int]) -> Iterator[None]:
    """Transformers' own model with ``planted`` experts in its routers; ``row[0]`` is the row that is computed."""
    gates = [layer.mlp.gate for layer in oracle.model.layers]
    kept = [gate.forward for gate in gates]
    index = planted(mb)

    def forward(number: int, gate: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.nn.functional.linear(hidden.reshape(-1, gate.hidden_dim), gate.weight)
        chosen = index[row[0], : len(logits), number]
        mine = torch.stack([logits[i, chosen[i]] for i in range(len(logits))])
        return logits, torch.softmax(mine, -1), chosen  # softmax over the chosen: what the paper writes

    for number, gate in enumerate(gates):
        gate.forward = lambda hidden, number=number, gate=gate: forward(number, gate, hidden)
    try:
        yield
    finally:
        for gate, was in zip(gates, kept, strict=True):
            gate.forward = was


def oracle_loss(oracle: Any, mb: MicroBatch) -> tuple[Tensor, Tensor]:
    """Loss and log-probs of transformers with the planted experts, row by row."""
    row = [0]
    parts = []
    with forced(oracle, mb, row):
        for row[0] in range(len(mb["labels"])):
            one = {key: mb[key][row[0] : row[0] + 1] for key in ("input_ids", "labels", "loss_mask")}
            parts.append(transformers_outputs(oracle, one))
    outputs = replace(
        parts[0],
        logprobs=torch.cat([part.logprobs for part in parts]),
        entropy=torch.cat([part.entropy for part in parts]),
    )
    return clipped_loss(outputs, mb)[0], outputs.logprobs.detach()


def own_choices(batches: list[MicroBatch]) -> list[MicroBatch]:
    """``batches`` with the experts that the model's own routers choose, as the engine would record them."""
    compute = connected("d1", packing=False)
    oracle: Any = compute.parallelize(model())
    seen: list[Tensor] = []
    for layer in oracle.model.layers:
        layer.mlp.gate.register_forward_hook(lambda gate, args, output: seen.append(output[2]))
    found = []
    for mb in batches:
        seen.clear()
        compute.token_outputs([padded(mb)])
        index = torch.stack([one.reshape(*mb["labels"].shape, USED) for one in seen], 2)
        found.append(routed_of(mb, index, torch.ones(mb["labels"].shape, dtype=torch.bool)))
    return found


def padded(mb: MicroBatch) -> MicroBatch:
    rows = ModelRows.of(mb["input_ids"], mb["labels"], mb["loss_mask"], mb["lengths"].tolist(), packed=False)
    return {**mb, "model": rows}


def work(batches: list[MicroBatch], layout: str = "d1", **options: Any) -> dict[str, Any]:
    """Log-probs and gradients of ``batches`` under a layout."""
    compute = connected(layout, **options)
    compute.parallelize(model())
    return measured(compute, share(batches, compute))


def measured(compute: ArchonCompute, mine: list[MicroBatch]) -> dict[str, Any]:
    logprobs = [out.logprobs for out in compute.token_outputs(mine)]
    loss = compute.forward_backward(mine, clipped_loss).loss
    numbers = [number_of(mb) for mb in mine]
    return {"loss": loss, "logprobs": dict(zip(numbers, logprobs, strict=True)), "gradients": full_gradients(compute)}


def largest(got: dict[Any, Tensor], want: dict[Any, Tensor]) -> float:
    return max(float((value - want[name]).abs().max()) for name, value in got.items())


# ---- one process ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_replaying_the_routers_own_choices_changes_no_bit(packed: bool) -> None:
    batches = tiny_batches(packed=packed)
    plain, replayed = work(batches), work(own_choices(batches))
    for name, value in plain["logprobs"].items():
        assert torch.equal(replayed["logprobs"][name], value), name
    for name, value in plain["gradients"].items():
        assert torch.equal(replayed["gradients"][name], value), name


@pytest.mark.parametrize("packed", [True, False])
def test_planted_choices_equal_transformers_with_these_experts(packed: bool) -> None:
    batches = tiny_batches(packed=packed)
    got = work(with_planted(batches))
    oracle = model()
    for mb in batches:
        loss, logprobs = oracle_loss(oracle, mb)
        loss.backward()
        torch.testing.assert_close(got["logprobs"][number_of(mb)], logprobs, atol=1e-5, rtol=0)
    for name, parameter in oracle.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(got["gradients"][name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
        if "gate.weight" in name:  # the router learns, although it did not choose
            assert float(parameter.grad.abs().max()) > 1e-4


def test_negative_control_planted_choices_change_the_result() -> None:
    batches = tiny_batches()
    assert largest(work(with_planted(batches))["logprobs"], work(batches)["logprobs"]) > 0.1


def test_positions_that_are_not_known_keep_the_routers_own_choice() -> None:
    batches = tiny_batches()
    plain = work(batches)["logprobs"]
    nothing = [routed_of(mb, planted(mb), torch.zeros(mb["labels"].shape, dtype=torch.bool)) for mb in batches]
    assert all(torch.equal(value, plain[name]) for name, value in work(nothing)["logprobs"].items())
    first = [mb["labels"].shape[1] // 4 for mb in batches]
    late = [routed_of(mb, planted(mb), torch.arange(mb["labels"].shape[1]).expand(mb["labels"].shape) >= start)
            for mb, start in zip(batches, first, strict=True)]  # fmt: skip
    for (number, value), start in zip(work(late)["logprobs"].items(), first, strict=True):
        torch.testing.assert_close(value[:, :start], plain[number][:, :start], atol=1e-6, rtol=0)
        assert float((value - plain[number])[:, start:].abs().max()) > 0.1


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointed_layers_choose_the_same_experts_again(mode: str) -> None:
    batches = with_planted(tiny_batches())
    plain, checkpointed = work(batches), work(batches, activation_checkpointing=mode)
    assert largest(checkpointed["gradients"], plain["gradients"]) < 1e-6


def test_a_pass_without_records_follows_one_with_records() -> None:
    compute = connected("d1")
    compute.parallelize(model())
    batches = tiny_batches()
    before = measured(compute, batches)["logprobs"]
    measured(compute, with_planted(batches))
    after = measured(compute, batches)["logprobs"]
    assert all(torch.equal(after[number], value) for number, value in before.items())


def test_records_mean_nothing_to_a_model_without_experts() -> None:
    batches = tiny_batches()
    found = []
    for each in (batches, with_planted(batches)):
        compute = connected("d1")
        compute.parallelize(tiny_model())
        found.append(measured(compute, each)["logprobs"])
    assert all(torch.equal(found[1][number], value) for number, value in found[0].items())


@pytest.mark.parametrize(
    ("shape", "value", "says"),
    [
        ((3, 2), 0, r"recorded \(3, 2\) .*model has \(4, 2\)"),
        ((4, 1), 0, r"recorded \(4, 1\) .*model has \(4, 2\)"),
        ((4, 2), 4, "an expert whose number is not below 4"),
    ],
)
def test_records_of_another_model_are_refused(shape: tuple[int, int], value: int, says: str) -> None:
    (mb,) = tiny_batches(1)
    index = torch.full((*mb["labels"].shape, *shape), value)
    with pytest.raises(ValueError, match=says):
        work([routed_of(mb, index, torch.ones(mb["labels"].shape, dtype=torch.bool))])


@pytest.mark.slow
def test_compiled_layers_choose_them_too() -> None:
    batches = with_planted(tiny_batches(2))
    plain, compiled = work(batches), work(batches, compile_blocks=True)
    # A compiler fuses and reorders: more than the 1e-6 of one order of sums.
    assert largest(compiled["gradients"], plain["gradients"]) < 5e-6
    assert largest(compiled["logprobs"], plain["logprobs"]) < 5e-6


# ---- several ranks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", range(4))
def test_tensor_ranks_cut_the_positions_of_their_context_rank(rank: int) -> None:
    """Activations lie T/(c t) a rank, context ranks outside. The layers of a stage are all that it moves."""
    index = torch.arange(2 * 8 * LAYERS * USED).reshape(2, 8, LAYERS, USED).to(torch.uint8)
    known = torch.arange(16).reshape(2, 8) % 3 == 0
    places = {"cp": rank // 2, "tp": rank % 2}
    mesh = SimpleNamespace(spec=ParallelSpec.parse("c2t2"), device=CPU, coordinate=places.__getitem__)
    choices = Choices(RoutedExperts(index, known), [1, 2], cast("Mesh", mesh))
    own = slice(2 * rank, 2 * rank + 2)
    assert choices.index.shape == (4, 2, USED)
    for layer in (1, 2):
        got, there = choices.of(layer)
        assert torch.equal(got, index[:, own, layer].flatten(0, 1).long())
        assert torch.equal(there, known[:, own].flatten()[:, None])


LAYOUTS = ["p2", "c2", "d2e2"]
SLOW = ["d2p2e2", "d2c2e2", "p2c2"]


@pytest.mark.parametrize("layout", [*LAYOUTS, *(pytest.param(layout, marks=pytest.mark.slow) for layout in SLOW)])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_layouts_replay_as_one_process(layout: str, checkpointing: str) -> None:
    batches = with_planted(tiny_batches())
    want = work(batches)
    world = 2 if layout in LAYOUTS else 4
    ranks = fork(world, lambda: work(batches, layout, activation_checkpointing=checkpointing))
    for rank in ranks:
        assert abs(float(rank["loss"] - want["loss"])) < 1e-6
        assert largest(rank["gradients"], want["gradients"]) < 1e-6
        assert largest(rank["logprobs"], want["logprobs"]) < 5e-6
    unreplayed = fork(world, lambda: work(tiny_batches(), layout))[0]
    assert largest(unreplayed["logprobs"], want["logprobs"]) > 0.1, "negative control"
