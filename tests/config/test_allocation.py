"""The allocation grammar: what it accepts, that it round-trips, and that each error points at the wrong character."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tau2_lightning.config.allocation import Allocation, AllocationError, ParallelSpec

MODEL: dict[str, Any] = {"num_layers": 4, "num_heads": 4, "num_kv_heads": 2}


def test_sizes_and_roles() -> None:
    allocation = Allocation.parse("vllm:d4t2+archon:d4p2t1")
    assert allocation.generation is not None and allocation.training is not None
    assert allocation.generation.world == 8 and allocation.training.world == 8 and allocation.world == 16
    assert allocation.training.spec == ParallelSpec(d=4, p=2)
    assert len(allocation.groups) == 2


def test_colocation_shares_devices() -> None:
    allocation = Allocation.parse("vllm:d2|archon:p2")
    assert allocation.world == 2 and len(allocation.groups) == 1


def test_hybrid_mixture_of_experts() -> None:
    training = Allocation.parse("archon:(attn:d2p1t2|ffn:e4)").training
    assert training is not None and training.world == 4 and training.experts == 4


@pytest.mark.parametrize(
    "text",
    [
        "vllm:d1+archon:d1p1t1", "sglang:t2d4+fsdp:d4p1t1", "fsdp:d2c2", "megatron:p2d2", "vllm[a]:d1+vllm[b]:d2",
        "archon:(attn:d2p1t2|ffn:e4)", "vllm:d2|archon:d2", "archon:d4e2", "archon:d2p2c2+vllm:d1",
    ],
)  # fmt: skip
def test_text_round_trips(text: str) -> None:
    assert str(Allocation.parse(text)) == text
    assert Allocation.parse(str(Allocation.parse(text))) == Allocation.parse(text)


@pytest.mark.parametrize(
    ("text", "culprit", "says"),
    [
        ("", 0, "expected a backend"),
        ("d4t2", 0, "without a backend"),
        ("vlm:d1", 0, "unknown backend"),
        ("vllm", 4, "expected ':'"),
        ("vllm:", 5, "expected sizes"),
        ("vllm:d0", 6, "not positive"),
        ("vllm:d", 6, "needs a number"),
        ("archon:d4d2", 9, "given twice"),
        ("archon:d4x2", 9, "unknown dimension"),
        ("vllm:d1c2", 7, "no context"),
        ("fsdp:d4p2", 7, "no pipeline"),
        ("vllm:d1+fsdp:d4t2", 15, "no tensor"),
        ("archon:d2e4", 9, "does not divide d*c"),
        ("archon:(attn:d2t2|ffn:e2)", 22, "attn has"),
        ("archon:(attn:d2p2|ffn:p1e4)", 22, "differs from attn"),
        ("archon:(attn:d2t2|ffn:e4", 24, "expected ')'"),
        ("archon:(ffn:e4)", 8, "expected 'attn:'"),
        ("fsdp:(attn:d1|ffn:e1)", 5, "has no (attn"),
        ("vllm:d1+archon:d1;rm", 17, "unexpected"),
        ("vllm:d1+", 8, "expected a backend"),
        ("vllm:d2|archon:d3", 8, "shares"),
        ("archon:d1+archon:d1", 10, "second training"),
        ("vllm[:d1", 5, "bad component name"),
    ],
)
def test_refusals_point_at_the_character(text: str, culprit: int, says: str) -> None:
    with pytest.raises(AllocationError) as caught:
        Allocation.parse(text)
    assert caught.value.position == culprit and says in caught.value.problem
    assert repr(text) in str(caught.value) and caught.value.allowed in str(caught.value)
    assert str(caught.value).splitlines()[-1] == " " * (culprit + 4) + "^"


@pytest.mark.parametrize(
    ("text", "culprit"),
    [("archon:d1t3", 9), ("archon:d1t4", 9), ("archon:p5", 7), ("archon:d2e2", 9), ("archon:t2c2", 9)],
)
def test_sizes_must_fit_the_model(text: str, culprit: int) -> None:
    with pytest.raises(AllocationError) as caught:
        Allocation.parse(text).check_model(**MODEL)
    assert caught.value.position == culprit


def test_a_fitting_model_and_cluster_pass() -> None:
    allocation = Allocation.parse("vllm:d2t2+archon:d2p2t1")
    allocation.check_model(**MODEL)
    allocation.check_cluster(n_nodes=2, n_gpus_per_node=4)
    Allocation.parse("archon:d2e2").check_model(**MODEL, num_experts=4)


def test_cluster_too_small_points_at_the_component_that_overflows() -> None:
    with pytest.raises(AllocationError, match="needs 12 devices, but the cluster has 1 x 8 = 8") as caught:
        Allocation.parse("vllm:d4t2+archon:d4").check_cluster(1, 8)
    assert caught.value.position == 10


def test_tensor_groups_stay_inside_a_node() -> None:
    with pytest.raises(AllocationError, match="spans nodes"):
        Allocation.parse("archon:t4").check_cluster(2, 2)


def test_the_trainers_sizes_hold_the_hybrids_experts() -> None:
    assert Allocation.parse("vllm:d1+archon:(attn:d2c2|ffn:e4)").training_spec() == ParallelSpec(d=2, c=2, e=4)
    assert Allocation.parse("vllm:d1+archon:d2p2e2").training_spec() == ParallelSpec(d=2, p=2, e=2)
    with pytest.raises(AllocationError, match="no training component"):
        Allocation.parse("vllm:d1").training_spec()


@pytest.mark.parametrize(("text", "culprit"), [("(attn:d2t2|ffn:e4)", 15), ("(attn:d4|ffn:t2e2)", 20)])
def test_a_hybrid_with_tensor_parallelism_is_understood_and_refused(text: str, culprit: int) -> None:
    with pytest.raises(AllocationError, match="not split over t") as caught:
        Allocation.parse(f"archon:{text}").check_runnable()
    assert caught.value.position == culprit


def test_megatron_is_understood_and_refused_with_what_to_use() -> None:
    allocation = Allocation.parse("vllm:d1+megatron:d2p2")
    with pytest.raises(AllocationError, match="Use archon"):
        allocation.check_runnable()


@settings(deadline=None)
@given(st.permutations("dptc"), st.lists(st.integers(1, 64), min_size=4, max_size=4), st.integers(1, 4))
def test_letters_in_any_order(letters: list[str], sizes: list[int], count: int) -> None:
    chosen = dict(zip(letters[:count], sizes, strict=False))
    text = "archon:" + "".join(f"{letter}{size}" for letter, size in chosen.items())
    spec = Allocation.parse(text).components[0].spec
    assert {letter: getattr(spec, letter) for letter in chosen} == chosen
    assert str(Allocation.parse(text)) == text


@settings(deadline=None)
@given(st.text(alphabet="vlmarchondptce0123:+|()[] ", max_size=24))
def test_any_text_parses_or_raises_our_error(text: str) -> None:
    try:
        parsed = Allocation.parse(text)
    except AllocationError as error:
        at = error.position
    else:
        at = 0
        assert Allocation.parse(str(parsed)) == parsed
    assert 0 <= at <= len(text)


_SIZE = st.integers(1, 64)


@st.composite
def specs(draw: st.DrawFn, letters: str) -> str:
    """Sizes in any order; an expert size of 1 only, which fits every d*c."""
    chosen = draw(st.permutations(letters))[: draw(st.integers(1, len(letters)))]
    return "".join(f"{letter}{1 if letter == 'e' else draw(_SIZE)}" for letter in chosen)


@st.composite
def hybrids(draw: st.DrawFn) -> str:
    d, t, p = draw(st.integers(1, 8)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return draw(st.sampled_from([f"(attn:d{d}p{p}t{t}|ffn:p{p}e{d * t})", f"(attn:t{t}d{d}|ffn:d{t}e{d})"]))


@st.composite
def allocations(draw: st.DrawFn) -> str:
    """Any allocation the grammar allows, as people write it: names, hybrids, components that share their devices."""
    trainer = draw(
        st.one_of(
            specs("dptce").map("archon:{}".format), specs("dc").map("fsdp:{}".format), hybrids().map("archon:{}".format)
        )
    )
    name = draw(st.sampled_from(["", "[policy]", "[b2]"]))
    engine = f"{draw(st.sampled_from(['vllm', 'sglang']))}{name}:{draw(specs('dpt'))}"
    user = [f"vllm[user]:{draw(specs('dt'))}"] if draw(st.booleans()) else []
    world = Allocation.parse(trainer).world
    shared = f"vllm{name}:d{world}|{trainer}"
    return draw(st.sampled_from(["+".join([engine, *user, trainer]), "+".join([trainer, engine, *user]), shared]))


@settings(deadline=None)
@given(allocations())
def test_every_allocation_round_trips(text: str) -> None:
    parsed = Allocation.parse(text)
    assert Allocation.parse(str(parsed)) == parsed
    assert str(Allocation.parse(str(parsed))) == str(parsed)
    assert parsed.world == sum(group[0].world for group in parsed.groups)
