"""The allocation grammar: what it accepts, that it round-trips, and that each error points at the wrong character."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tau2_lightning.config.allocation import Allocation, AllocationError, ParallelSpec
from tau2_lightning.config.model_sizes import ModelSizes
from tau2_lightning.config.parallel import LARGEST

MODEL = ModelSizes(layers=4, heads=4, kv_heads=2, experts=0, name="the model")


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
        ("archon:d2e4", 9, "does not divide d*c*t = 2"),
        ("archon:d2t2e3", 11, "does not divide d*c*t = 4"),
        ("archon:(attn:d2t2|ffn:d1e2)", 22, "ffn has d*t*e = 2 ranks in a stage, attn has d*c*t = 4"),
        ("archon:(attn:d2t2|ffn:e3)", 22, "ffn t*e = 3 does not divide attn d*c*t = 4"),
        ("megatron:(attn:d2t2|ffn:c2e4)", 24, "no context"),
        ("megatron:(attn:d2t2e2|ffn:e4)", 19, "no expert"),
        ("archon:(attn:d2p2|ffn:p1e2)", 22, "differs from attn"),
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
        Allocation.parse(text).check_model(MODEL)
    assert caught.value.position == culprit


def test_a_fitting_model_and_cluster_pass() -> None:
    allocation = Allocation.parse("vllm:d2t2+archon:d2p2t1")
    allocation.check_model(MODEL)
    allocation.check_cluster(n_nodes=2, n_gpus_per_node=4)
    Allocation.parse("archon:d2e2").check_model(replace(MODEL, experts=4))


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


# AReaL's own strings: attention of d x p x t x c, experts of d x p x t x e, over the same ranks.
AREAL = {
    "megatron:(attn:d4p4t2|ffn:d2p4e4)": (ParallelSpec(d=4, p=4, t=2, e=4), 32),  # its tau2 recipe for 30B
    "megatron:(attn:d1p12t4|ffn:d1p12e4)": (ParallelSpec(p=12, t=4, e=4), 48),  # its tau2 recipe for 235B
    "megatron:(attn:d1p12t4c1|ffn:d1p12t1e4)": (ParallelSpec(p=12, t=4, e=4), 48),
    "archon:(attn:d1p4t2c2|ffn:d1p4t1e4)": (ParallelSpec(p=4, t=2, c=2, e=4), 16),
    "megatron:(attn:d2p2t2c8|ffn:d2p2e16)": (ParallelSpec(d=2, p=2, t=2, c=8, e=16), 64),
    "megatron:attn:d4p4t2|ffn:d2p4e4": (ParallelSpec(d=4, p=4, t=2, e=4), 32),  # its brackets may be left out
    "megatron:d2p2t4e4": (ParallelSpec(d=2, p=2, t=4, e=4), 16),
    "archon:(attn:d2p1t2|ffn:e4)": (ParallelSpec(d=2, t=2, e=4), 4),
    "archon:(attn:d4p2t2|ffn:e2)": (ParallelSpec(d=4, p=2, t=2, e=2), 16),  # ffn: p2, and the d4 that is left
}


@pytest.mark.parametrize(("text", "expected"), AREAL.items())
def test_areals_strings_mean_the_same_layout(text: str, expected: tuple[ParallelSpec, int]) -> None:
    allocation = Allocation.parse(f"sglang:d8t4+{text}")
    assert allocation.training is not None
    assert (allocation.training_spec(), allocation.training.world) == expected
    assert Allocation.parse(str(allocation)) == allocation


def test_an_ffn_half_is_completed_from_the_attn_half() -> None:
    training = Allocation.parse("archon:(attn:d4p2t2|ffn:e2)").training
    assert training is not None and training.ffn == ParallelSpec(d=4, p=2, e=2)


def test_megatron_is_accepted_with_a_notice() -> None:
    allocation = Allocation.parse("vllm:d1+megatron:d2p2")
    allocation.check_runnable()
    (notice,) = allocation.notices
    assert "megatron:d2p2: computed by archon" in notice and "megatron-core is not used" in notice
    assert Allocation.parse("vllm:d1+archon:d2p2").notices == ()


def test_split_experts_are_understood_and_refused() -> None:
    """AReaL's example of expert tensor parallelism."""
    allocation = Allocation.parse("megatron:(attn:d4p2t2c2|ffn:d2p2t4e2)")
    with pytest.raises(AllocationError, match=r"t4 in ffn would split each expert.*\n?.*raise e or d") as caught:
        allocation.check_runnable()
    assert caught.value.position == 32


def test_all_that_is_wrong_with_a_hybrid_is_said_at_once() -> None:
    with pytest.raises(AllocationError) as caught:
        Allocation.parse("archon:(attn:d2p2t2|ffn:d1p1e2)")
    assert "ffn p1 differs from attn p2" in caught.value.problem and "ffn has d*t*e = 2" in caught.value.problem
    assert str(caught.value).splitlines()[-1] == "    " + " " * 24 + "^ ^"


def test_all_that_does_not_fit_a_model_is_said_at_once() -> None:
    with pytest.raises(AllocationError) as caught:
        Allocation.parse("archon:(attn:d1p5t4|ffn:d1p5e4)").check_model(replace(MODEL, experts=6))
    for part in ("t4 does not divide the 2 key-value heads", "p5 is more than the 4 layers", "e4, but the model has 6"):
        assert part in caught.value.problem
    assert caught.value.marks.count("^") == 3


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
    assume(world <= LARGEST)
    shared = f"vllm{name}:d{world}|{trainer}"
    return draw(st.sampled_from(["+".join([engine, *user, trainer]), "+".join([trainer, engine, *user]), shared]))


@settings(deadline=None)
@given(allocations())
def test_every_allocation_round_trips(text: str) -> None:
    parsed = Allocation.parse(text)
    assert Allocation.parse(str(parsed)) == parsed
    assert str(Allocation.parse(str(parsed))) == str(parsed)
    assert parsed.world == sum(group[0].world for group in parsed.groups)
