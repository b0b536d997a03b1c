"""The places that plan and start use: one for each rank, no group across nodes that must not be, and clear errors."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tau2_lightning.config.allocation import Allocation, AllocationError
from tau2_lightning.launch.placement import ServerPlace, place


def placed(text: str, n_nodes: int = 1, gpus: int = 0):
    return place(Allocation.parse(text), n_nodes, gpus)


def test_engines_and_trainer_get_their_own_gpus():
    both = placed("vllm:d2t2+archon:d2p2", 1, 8)
    assert both.engines == (ServerPlace(0, (0, 1)), ServerPlace(0, (2, 3)))
    assert [one.local for one in both.trainer] == [4, 5, 6, 7]
    assert [one.coordinates for one in both.trainer] == ["p0 d0 c0 t0", "p0 d1 c0 t0", "p1 d0 c0 t0", "p1 d1 c0 t0"]
    assert both.ranks_per_node == 4 and both.trainer_nodes == (0,) and not both.spread


def test_the_order_of_components_is_the_order_of_devices():
    turned = placed("archon:d2+vllm:d1", 1, 4)
    assert [one.local for one in turned.trainer] == [0, 1]
    assert turned.engines == (ServerPlace(0, (2,)),)


def test_colocation_shares_gpus():
    shared = placed("vllm:d2|archon:d2", 1, 2)
    assert shared.engines == (ServerPlace(0, (0,)), ServerPlace(0, (1,)))
    assert [one.local for one in shared.trainer] == [0, 1]


def test_two_nodes_of_eight_as_the_seeds_have_them():
    two = placed("sglang:d4t2+archon:d4p2t1", 2, 8)
    assert {server.node for server in two.engines} == {0} and two.trainer_nodes == (1,)
    assert two.ranks_per_node == 8 and two.spread
    assert [server.devices for server in two.engines] == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_a_trainer_over_two_nodes():
    wide = placed("archon:d4t2|vllm:d4t2", 2, 4)
    assert wide.trainer_nodes == (0, 1) and wide.ranks_per_node == 4
    assert [(one.rank, one.local) for one in wide.ranks_on(1)] == [(4, 0), (5, 1), (6, 2), (7, 3)]


def test_cpu_divides_ranks_over_nodes_and_keeps_the_engine_beside_rank_0():
    two = placed("vllm:d1+archon:d2", 2)
    assert two.engines == (ServerPlace(0, ()),)
    assert [(one.node, one.rank) for one in two.trainer] == [(0, 0), (1, 1)]
    assert two.on_cpu and not two.spread and two.ranks_per_node == 1


def test_the_user_has_a_component_of_its_own():
    three = placed("vllm:d1+vllm[user]:t2+archon:d1", 1, 4)
    assert three.engines == (ServerPlace(0, (0,)),)
    assert three.servers(three.user) == (ServerPlace(0, (1, 2)),)


@pytest.mark.parametrize(
    ("text", "nodes", "gpus", "at", "says"),
    [
        ("vllm:d1+archon:d8", 1, 8, 8, "needs 9 devices"),
        ("vllm:d2+archon:d6", 2, 4, 8, "unevenly: 2 on node 0, 4 on node 1"),
        ("vllm:d3+vllm[user]:t2+archon:d1", 2, 4, 8, "engine 0 of vllm[user]:t2 would lie on two nodes"),
        ("vllm:d1+archon:d2t2", 2, 4, 8, "tensor group 1 of archon:d2t2 would lie on two nodes"),
        ("vllm:d1+archon:d3", 2, 0, 8, "do not divide over 2 nodes"),
        ("archon:t4", 2, 2, 7, "spans nodes"),
    ],
)
def test_refusals_point_at_the_component(text, nodes, gpus, at, says):
    with pytest.raises(AllocationError) as caught:
        placed(text, nodes, gpus)
    assert caught.value.position == at
    assert says in caught.value.problem


SIZES = st.integers(1, 4)


@given(SIZES, SIZES, SIZES, SIZES, st.integers(1, 4), st.sampled_from([1, 2, 4, 8]), st.booleans())
def test_every_device_is_used_once_and_every_rank_has_a_place(d, t, td, tp, nodes, gpus, shared):
    text = f"vllm:d{d}t{t}|archon:d{d}t{t}" if shared else f"vllm:d{d}t{t}+archon:d{td}p{tp}"
    try:
        table = placed(text, nodes, gpus)
    except AllocationError:
        return  # too many, or across nodes: the tests above
    used = Counter((one.node, one.local) for one in table.places)
    assert set(used.values()) == {2 if shared else 1}
    assert all(node < nodes and local < gpus for node, local in used)
    assert [one.rank for one in table.trainer] == list(range(len(table.trainer)))
    assert len({one.coordinates for one in table.trainer}) == len(table.trainer)
    assert sum(len(server.devices) for server in table.engines) == table.allocation.generation.world
    assert table.ranks_per_node * len(table.trainer_nodes) == len(table.trainer)
