"""A curve in one line: from the smallest to the largest value, in the width that there is."""

from __future__ import annotations

import pytest

from tau2_lightning.telemetry.sparkline import ASCII, BLOCKS, sparkline


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 10, ""),
        ([0.5], 10, "▁"),
        ([0.5, 0.5, 0.5], 10, "▁▁▁"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, BLOCKS),
        ([7, 0], 8, "█▁"),
        ([0, 0, 4, 4, 7, 7], 3, "▁▅█"),  # neighbours are averaged
        ([1, 2], 0, ""),
    ],
)
def test_a_curve_has_these_marks(values: list[float], width: int, line: str) -> None:
    assert sparkline(values, width) == line


def test_no_value_is_lost_and_the_line_never_exceeds_its_width() -> None:
    for count in range(1, 40):
        line = sparkline([0.0] * (count - 1) + [1.0], 7, ASCII)
        assert len(line) == min(count, 7) and (count == 1 or line[-1] == ASCII[-1])
