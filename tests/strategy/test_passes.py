"""In which order trunks and the micro-batches that continue them go through the model."""

from __future__ import annotations

import torch

from tau2_lightning.microbatch import Trunk
from tau2_lightning.strategy.passes import Pass, one_by_one, together


def trunk(parent: Trunk | None = None) -> Trunk:
    return Trunk(torch.zeros(1, 3, dtype=torch.int64), parent=parent)


DOMAIN, OTHER = trunk(), trunk()
FIRST, SECOND = trunk(DOMAIN), trunk(DOMAIN)


def test_one_rank_returns_a_trunk_before_it_records_the_next() -> None:
    assert one_by_one([DOMAIN, FIRST, FIRST, SECOND, OTHER, None]) == [
        Pass("record", [DOMAIN]), Pass("rows", rows=[0]),
        Pass("record", [FIRST]), Pass("rows", rows=[1]), Pass("rows", rows=[2]), Pass("return", [FIRST]),
        Pass("record", [SECOND]), Pass("rows", rows=[3]), Pass("return", [SECOND]), Pass("return", [DOMAIN]),
        Pass("record", [OTHER]), Pass("rows", rows=[4]), Pass("return", [OTHER]),
        Pass("rows", rows=[5]),
    ]  # fmt: skip


def test_a_trunk_is_computed_once_where_micro_batches_come_in_any_order() -> None:
    found = one_by_one([FIRST, SECOND, FIRST, None, FIRST])
    assert [each.rows for each in found if each.kind == "rows"] == [[0], [2], [4], [1], [3]]
    assert [each.trunks for each in found if each.kind == "record"] == [[DOMAIN], [FIRST], [SECOND]]


def test_ranks_with_different_trunks_make_the_same_calls() -> None:
    mine = together([FIRST, SECOND, OTHER, None], 3)
    assert mine == [
        Pass("record", [DOMAIN, OTHER]), Pass("record", [FIRST, SECOND]), Pass("record", []),
        Pass("rows", rows=range(4)),
        Pass("return", []), Pass("return", [FIRST, SECOND]), Pass("return", [DOMAIN, OTHER]),
    ]  # fmt: skip
    assert [each.kind for each in together([], 3)] == [each.kind for each in mine]
