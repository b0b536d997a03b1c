"""A model computes tokens that rows share once: log-probs, losses and gradients are those of the separate rows."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.recorded_groups import Recorded
from tau2_lightning.algorithm import GRPO, GSPO, PolicyGradient
from tau2_lightning.batch.batch import Batch
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.segments import Segment
from tau2_lightning.strategy import tree_attention
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.kept_prefix import KeptPrefix
from tau2_lightning.strategy.lora import LoRASettings
from tau2_lightning.strategy.outputs import TokenOutputs
from tau2_lightning.trajectory import Group, Trajectory
from tests.batch.groups import loss_of, random_groups
from tests.strategy.distributed import fork
from tests.strategy.test_replay import model as routing_model
from tests.strategy.tiny import connected, full_gradients, tiny_model

LOGPROBS, GRADIENTS = 2e-6, 1e-6


def batch(seed: int = 0) -> Batch:
    return Batch.from_groups(random_groups(seed, 3, 4), GRPO(), version=3)


def behind_a_system_prompt(seed: int = 0) -> Batch:
    """Groups that all begin with the same 70 tokens, more than a micro-batch is given below."""
    groups = random_groups(seed, 3, 4)
    prompt = np.random.default_rng(5).integers(3, 80, 70)
    return Batch.from_groups([prefixed(group, prompt) for group in groups], GRPO(), version=3)


def prefixed(group: Group, prompt: npt.NDArray[np.int64]) -> Group:
    """The group with ``prompt`` before all its rows."""
    return replace(
        group,
        rollouts=tuple(
            replace(rollout, trajectories=tuple(_prefixed(row, prompt) for row in rollout.trajectories))
            for rollout in group.rollouts
        ),
    )


def _prefixed(row: Trajectory, prompt: npt.NDArray[np.int64]) -> Trajectory:
    n = len(prompt)
    turns = tuple(replace(turn, start=turn.start + n, end=turn.end + n) for turn in row.turns)
    logprobs = np.concatenate([np.zeros(n, np.float32), row.logprobs])
    versions = np.concatenate([np.full(n, -1, np.int32), row.versions])
    return Trajectory.of([*prompt.tolist(), *row.leaf.flat().tolist()], logprobs, versions, turns, row.branch)


def local(compute: ArchonCompute, rows: Batch, budget: int, shared: bool) -> list[MicroBatch]:
    d, rank = compute.spec.d, compute.mesh.coordinate("dp")
    count = rows.microbatch_count(budget, d, packed=True, shared=shared, multiple=compute.spec.p)
    return rows.shard(rank, d, shared=shared).microbatches(budget, count, packed=True, shared=shared)


def gradients(
    compute: ArchonCompute, rows: Batch, budget: int, shared: bool, algorithm: PolicyGradient
) -> dict[str, Tensor]:
    """The gradients by name of one step, and its loss."""

    def loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
        return loss_of(algorithm, outputs.logprobs, outputs.entropy, mb)

    for parameter in compute.model.parameters():
        parameter.grad = None
    found = compute.forward_backward(local(compute, rows, budget, shared), loss)
    return {"loss": found.loss, **full_gradients(compute)}


def largest_difference(found: Mapping[str, Tensor], want: Mapping[str, Tensor]) -> float:
    return max(float((value - want[name]).abs().max()) for name, value in found.items())


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "qwen3_moe"])
@pytest.mark.parametrize("budget", [40, 10**6])
@pytest.mark.parametrize("algorithm", [GRPO(), GSPO()], ids=["grpo", "gspo"])
def test_gradients_equal_those_of_separate_rows(family: str, budget: int, algorithm: PolicyGradient) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model(family=family))
    assert compute.shares
    ours, theirs = (gradients(compute, batch(), budget, shared, algorithm) for shared in (True, False))
    assert ours.keys() == theirs.keys() and max(float(value.abs().max()) for value in theirs.values()) > 1e-2
    assert largest_difference(ours, theirs) <= GRADIENTS


@pytest.mark.parametrize("algorithm", [GRPO(), GSPO()], ids=["grpo", "gspo"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_a_trunk_that_is_computed_once_changes_no_gradient(algorithm: PolicyGradient, checkpointing: str) -> None:
    compute = connected("d1", activation_checkpointing=checkpointing)
    compute.parallelize(tiny_model())
    rows = behind_a_system_prompt()
    microbatches = local(compute, rows, 60, True)
    trunks = {mb["model"].trunk for mb in microbatches}
    assert len(trunks) == 1 and len(microbatches) > 2
    assert all(mb["model"].input_ids.numel() <= 60 for mb in microbatches)
    ours, theirs = (
        gradients(compute, rows, budget, shared, algorithm) for budget, shared in ((60, True), (400, False))
    )
    assert largest_difference(ours, theirs) <= GRADIENTS


def test_two_trunks_with_one_beginning_change_no_gradient() -> None:
    prompts = [np.array([*range(10), *range(start, start + 80)]) for start in (100, 200)]
    groups = random_groups(0, 4, 4)
    rows = Batch.from_groups([prefixed(group, prompts[i % 2]) for i, group in enumerate(groups)], GRPO(), version=3)
    compute = connected("d1")
    compute.parallelize(tiny_model())
    assert len({mb["model"].trunk for mb in local(compute, rows, 60, True)}) == 2
    ours, theirs = (gradients(compute, rows, b, shared, GRPO()) for b, shared in ((60, True), (400, False)))
    assert largest_difference(ours, theirs) <= GRADIENTS


def tasks_of_a_domain() -> Batch:
    """A policy of 70 tokens, openings of 70 tokens behind it for each of two tasks, and one row without an opening."""
    rng = np.random.default_rng(5)
    policy, first, second = (rng.integers(3, 80, 70) for _ in range(3))
    openings = [np.concatenate([policy, own]) for own in (first, second)]
    groups = [prefixed(group, openings[i % 2]) for i, group in enumerate(random_groups(0, 4, 4))]
    return Batch.from_groups([*groups, prefixed(random_groups(1, 1, 1)[0], policy)], GRPO(), version=3)


@pytest.mark.parametrize("checkpointing", ["none", "full", "selective"])
def test_trunks_that_continue_a_trunk_change_no_gradient(checkpointing: str) -> None:
    compute = connected("d1", activation_checkpointing=checkpointing)
    compute.parallelize(tiny_model())
    rows = tasks_of_a_domain()
    trunks = {mb["model"].trunk for mb in local(compute, rows, 60, True)}
    assert sorted(len(trunk.path()) for trunk in trunks if trunk is not None) == [1, 2, 2]
    ours, theirs = (gradients(compute, rows, b, shared, GRPO()) for b, shared in ((60, True), (400, False)))
    assert largest_difference(ours, theirs) <= GRADIENTS


def test_the_trunks_of_one_micro_batch_are_in_memory_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    every: list[KeptPrefix] = []
    most: list[int] = []
    start, seen = KeptPrefix.__init__, KeptPrefix.seen

    def noted(self: KeptPrefix, size: int, parent: KeptPrefix | None = None) -> None:
        start(self, size, parent)
        every.append(self)

    def counted(self: KeptPrefix, module: torch.nn.Module) -> object:
        most.append(sum(bool(each._kept or each._gradients) for each in every))
        return seen(self, module)

    monkeypatch.setattr(KeptPrefix, "__init__", noted)
    monkeypatch.setattr(KeptPrefix, "seen", counted)
    gradients(compute, tasks_of_a_domain(), 60, True, GRPO())
    assert len(every) == 3 and max(most) == 2


@pytest.mark.parametrize("rows", ["behind_a_system_prompt", "tasks_of_a_domain"])
def test_a_trunk_changes_no_log_prob(rows: str) -> None:
    check_log_probs({"behind_a_system_prompt": behind_a_system_prompt, "tasks_of_a_domain": tasks_of_a_domain}[rows]())


def check_log_probs(rows: Batch) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    found: list[dict[int, Tensor]] = []
    for budget, shared in ((60, True), (400, False)):
        microbatches = local(compute, rows, budget, shared)
        values: dict[int, Tensor] = {}
        for mb, out in zip(microbatches, compute.token_outputs(microbatches), strict=True):
            lengths = mb["lengths"].tolist()
            values |= {row: out.logprobs[i, : lengths[i]] for i, row in enumerate(mb["row_ids"].tolist())}
        found.append(values)
    assert found[0].keys() == found[1].keys()
    for row, value in found[0].items():
        torch.testing.assert_close(value, found[1][row], atol=LOGPROBS, rtol=0)


def test_negative_control_a_trunk_without_its_gradients_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    rows = behind_a_system_prompt()
    theirs = gradients(compute, rows, 400, False, GRPO())
    monkeypatch.setattr(KeptPrefix, "returned", lambda self, module, key, value: (key, value))
    assert largest_difference(gradients(compute, rows, 60, True, GRPO()), theirs) > 10 * GRADIENTS


def test_log_probs_and_entropy_equal_those_of_separate_rows() -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    found: list[dict[int, Tensor]] = []
    for shared in (True, False):
        microbatches = local(compute, batch(1), 60, shared)
        values: dict[int, Tensor] = {}
        for mb, out in zip(microbatches, compute.token_outputs(microbatches, temperature=0.7), strict=True):
            for i, row in enumerate(mb["row_ids"].tolist()):
                length = int(mb["lengths"][i])
                values[row] = torch.stack([out.logprobs[i, :length], out.entropy[i, :length]])
        found.append(values)
    assert any(mb["model"].nodes and len(mb["model"].nodes) > 1 for mb in local(compute, batch(1), 60, True))
    for row, value in found[0].items():
        torch.testing.assert_close(value, found[1][row], atol=LOGPROBS, rtol=0)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 5), st.integers(20, 200), st.booleans())
def test_random_forests(seed: int, groups: int, samples: int, budget: int, prompt: bool) -> None:
    made = random_groups(seed, groups, samples)
    if prompt:
        made = [prefixed(group, np.random.default_rng(seed).integers(3, 80, 70)) for group in made]
    rows = Batch.from_groups(made, GRPO(), version=3)
    compute = connected("d1")
    compute.parallelize(tiny_model(layers=2))
    ours, theirs = (gradients(compute, rows, b, shared, GRPO()) for b, shared in ((budget, True), (400, False)))
    assert largest_difference(ours, theirs) <= GRADIENTS


@pytest.mark.parametrize("options", [{"compile_blocks": True}, {"lora": LoRASettings(4, 8.0)}], ids=["compile", "lora"])
def test_with_compiled_layers_and_with_adapters(options: dict[str, Any]) -> None:
    compute = connected("d1", **options)
    compute.parallelize(tiny_model())
    with torch.no_grad():
        for key, parameter in compute.model.named_parameters():
            if key.endswith("lora_B.weight"):
                parameter.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(len(key)))
    for rows, budget in ((batch(), 10**6), (behind_a_system_prompt(), 60)):
        ours, theirs = (gradients(compute, rows, b, shared, GRPO()) for b, shared in ((budget, True), (400, False)))
        assert max(float(value.abs().max()) for value in theirs.values()) > 1e-2
        assert largest_difference(ours, theirs) <= GRADIENTS


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["telecom_solo", "retail"])
def test_recorded_groups_with_full_policies(domain: str) -> None:
    """Openings of 5,000 to 10,000 tokens: two tasks, two samples each, in a budget that needs a trunk and in one
    micro-batch."""
    recorded = Recorded.load(domain, tasks=2)
    kept = [0, 1, 8, 9]
    some = Recorded([recorded.tokens[i] for i in kept], [recorded.actions[i] for i in kept], recorded.vocabulary)
    rows = some.batch()
    compute = connected("d1")
    compute.parallelize(tiny_model(layers=2, vocab=recorded.vocabulary, positions=16_384))

    def step(budget: int, shared: bool) -> dict[str, Tensor]:
        for parameter in compute.model.parameters():
            parameter.grad = None
        microbatches = rows.microbatches(budget, packed=True, shared=shared)
        assert (shared and budget < 10**6) is (microbatches[0]["model"].trunk is not None)
        found = compute.forward_backward(microbatches, lambda out, mb: (-out.logprobs.sum() / mb["n_tokens"], {}))
        return {"loss": found.loss, **full_gradients(compute)}

    theirs = step(10**5, False)
    assert max(float(value.abs().max()) for value in theirs.values()) > 1e-2
    for budget in (3000, 10**6):
        assert largest_difference(step(budget, True), theirs) <= GRADIENTS


def with_experts(rows: Batch) -> Batch:
    """The batch with recorded experts that depend on a token's past only, as an engine's do."""
    found = []
    for row in rows.rows:
        tokens = row.leaf.flat().tolist()
        chosen = np.zeros((len(tokens), 4, 2), np.uint8)
        for t in range(1, len(tokens)):  # of the position before
            for layer in range(4):
                first = hash((*tokens[:t], layer)) % 4
                chosen[t, layer] = first, (first + 1) % 4
        found.append(replace(row, leaf=Segment.of(tokens, None, chosen)))
    return replace(Batch.from_rows(found, version=3), columns=rows.columns)


@pytest.mark.parametrize("make", [batch, behind_a_system_prompt, tasks_of_a_domain])
def test_replayed_experts_follow_the_tokens(make: Callable[[], Batch]) -> None:
    compute = connected("d1")
    compute.parallelize(routing_model())
    rows = make()
    recorded = with_experts(rows)
    ours, theirs = (
        gradients(compute, recorded, budget, shared, GRPO()) for budget, shared in ((60, True), (400, False))
    )
    own = gradients(compute, rows, 60, True, GRPO())
    assert largest_difference(ours, theirs) <= GRADIENTS
    assert largest_difference(ours, own) > 100 * GRADIENTS, "control: the record changes nothing"


def every_batch() -> tuple[Batch, ...]:
    return batch(), behind_a_system_prompt(), tasks_of_a_domain()


def in_layout(text: str, family: str) -> list[dict[str, Tensor]]:
    compute = connected(text)
    compute.parallelize(tiny_model(family=family))
    assert compute.shares
    return [gradients(compute, rows, 60, True, GRPO()) for rows in every_batch()]


LAYOUTS = [("d2", "qwen3"), ("t2", "qwen3"), ("c2", "qwen3"), ("d2e2", "qwen3_moe")]
SLOW = [("p2", "qwen3"), ("d2p2", "qwen3"), ("d2t2", "qwen3")]


@pytest.mark.parametrize(
    ("text", "family"), [*LAYOUTS, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_layouts_compute_shared_tokens_once_too(text: str, family: str) -> None:
    alone = connected("d1")
    alone.parallelize(tiny_model(family=family))
    wants = [gradients(alone, rows, 400, False, GRPO()) for rows in every_batch()]
    ranks = fork(ParallelSpec.parse(text).world, in_layout, text, family)
    for number, want in enumerate(wants):
        assert set().union(*(rank[number] for rank in ranks)) == want.keys()
        for rank in ranks:
            assert largest_difference(rank[number], want) <= GRADIENTS


@pytest.mark.parametrize("options", [{"activation_checkpointing": "full"}, {"activation_checkpointing": "selective"}])
def test_with_activation_checkpointing(options: dict[str, Any]) -> None:
    found = []
    none: dict[str, Any] = {}
    for chosen in (none, options):
        compute = connected("d1", **chosen)
        compute.parallelize(tiny_model())
        found.append(gradients(compute, batch(), 10**6, True, GRPO()))
    assert largest_difference(*found) <= GRADIENTS


def test_selective_checkpointing_does_not_compute_attention_again(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks, calls = tree_attention._blocks, dict.fromkeys(("none", "selective", "full"), 0)
    for mode in calls:

        def counted(nodes: Tensor, before: int, mode: str = mode) -> object:
            calls[mode] += 1
            return blocks(nodes, before)

        monkeypatch.setattr(tree_attention, "_blocks", counted)
        compute = connected("d1", activation_checkpointing=mode)
        compute.parallelize(tiny_model())
        gradients(compute, behind_a_system_prompt(), 60, True, GRPO())
    assert calls["none"] == calls["selective"] < calls["full"]


def kept_after_passes(text: str) -> list[bool]:
    """For each trunk that was kept in a training and a scoring pass: whether it still is after the pass."""
    compute = connected(text)
    compute.parallelize(tiny_model())
    kept: list[weakref.ref[KeptPrefix]] = []
    record = KeptPrefix.__init__

    def noted(self: KeptPrefix, size: int, parent: KeptPrefix | None = None) -> None:
        record(self, size, parent)
        kept.append(weakref.ref(self))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KeptPrefix, "__init__", noted)
        gradients(compute, behind_a_system_prompt(), 60, True, GRPO())
        gc.collect()
        found = [each() is not None for each in kept]
        compute.token_outputs(local(compute, behind_a_system_prompt(), 60, True))
        gc.collect()
    return found + [each() is not None for each in kept[len(found) :]]


@pytest.mark.parametrize("text", ["d1", "t2", pytest.param("p2", marks=pytest.mark.slow)])
def test_nothing_of_a_trunk_stays_in_memory_after_a_pass(text: str) -> None:
    for found in fork(ParallelSpec.parse(text).world, kept_after_passes, text):
        assert len(found) >= 2 and not any(found)


def test_negative_control_a_branch_that_sees_another_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    theirs = gradients(compute, batch(), 10**6, False, GRPO())
    blocks = tree_attention._blocks

    def wrong(nodes: Tensor, before: int) -> object:
        yield from blocks(nodes, before)
        for (start, end, below), (own, last, _) in pairwise(nodes.tolist()):
            if below == end:  # the second is another branch: it must not see the first
                yield slice(own, last), slice(start, end), False

    monkeypatch.setattr(tree_attention, "_blocks", wrong)
    ours = gradients(compute, batch(), 10**6, True, GRPO())
    assert largest_difference(ours, theirs) > 10 * GRADIENTS


def test_labels_beyond_the_limit_are_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from tau2_lightning.strategy import model

    compute = connected("d1")
    compute.parallelize(tiny_model())
    whole = gradients(compute, batch(), 10**6, True, GRPO())
    monkeypatch.setattr(model, "LOGITS_BYTES", 20_000)
    parts = gradients(compute, batch(), 10**6, True, GRPO())
    assert largest_difference(whole, parts) <= GRADIENTS
