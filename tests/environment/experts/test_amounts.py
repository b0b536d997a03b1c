"""Amounts that users ask for are sums of what was read, calculated by the tool."""

from __future__ import annotations

import pytest

from tau2_lightning.environment.experts.amounts import named, subsets, terms_of, work_out, written
from tau2_lightning.environment.experts.seen import Seen
from tau2_lightning.environment.telecom_expert import Act


@pytest.mark.parametrize(
    ("expression", "terms"),
    [("1319.43 - 302.67 + 271.89", [1319.43, -302.67, 271.89]), ("164.28", [164.28]), ("2 * 3", None), ("", None)],
)
def test_chains_of_sums_are_read(expression: str, terms: list[float] | None) -> None:
    assert terms_of(expression) == terms


@pytest.mark.parametrize(
    ("terms", "text"), [([1.5, -2.25, 3], "1.5 + 3 - 2.25"), ([1, -3], "3 - 1"), ([-2, -3], "2 + 3"), ([7], "7")]
)
def test_sums_are_written_so_that_they_are_not_negative(terms: list[float], text: str) -> None:
    assert written(terms) == text


def test_subsets_have_two_members_at_least() -> None:
    assert list(subsets([1, 2, 3])) == [(1, 2), (1, 3), (2, 3), (1, 2, 3)]


def test_only_what_was_not_read_is_calculated_and_only_of_what_was() -> None:
    seen = Seen("", [])
    seen.add("prices: 12.5, 20 and 30.25; a camera")
    work = work_out(["camera", "20.00", "42.75", "99", "polyester"], [[12.5, 30.25], [50, 49]], seen)
    assert next(work) == Act("calculate", {"expression": "12.5 + 30.25"})
    with pytest.raises(StopIteration) as done:
        work.send("42.75")
    assert done.value.value == ["camera", "20.00", "42.75"], "50 and 49 were never read"


def test_a_fact_is_told_with_its_name() -> None:
    results = [{"items": [{"tracking_id": ["77"], "price": 46.5}]}]
    assert named("77", results) == "tracking id: 77" and named("46.50", results) == "price: 46.50"
    assert named("camera", results) == "camera" and named("9.5", results) == "in all: 9.5"
