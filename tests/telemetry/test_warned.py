"""A warning is shown once, and all of them again at the end of the run, however it ends."""

from __future__ import annotations

import warnings

import pytest

from tau2_lightning.telemetry.warned import MOST, listed, warn, warned_again, warnings_so_far


def test_a_warning_is_shown_once_and_again_in_the_list_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    with warned_again():
        for _ in range(3):
            warn("the disk is nearly full")
        warn("step 5: a spike")
        assert capsys.readouterr().err.splitlines() == ["warning: the disk is nearly full", "warning: step 5: a spike"]
        assert warnings_so_far() == ["the disk is nearly full (3 times)", "step 5: a spike"]
    assert capsys.readouterr().err.splitlines() == [
        "2 warnings of this run:", "  - the disk is nearly full (3 times)", "  - step 5: a spike",
    ]  # fmt: skip


def test_the_list_comes_after_an_error_too_and_the_next_run_begins_without_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(RuntimeError), warned_again():
        warn("one")
        raise RuntimeError
    assert capsys.readouterr().err.endswith("1 warning of this run:\n  - one\n")
    with warned_again():
        assert warnings_so_far() == []
        warn("one")
        assert "warning: one" in capsys.readouterr().err


def test_other_ranks_list_nothing_and_outside_a_run_nothing_is_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    with warned_again(shown=False):
        warn("one")
        capsys.readouterr()
    assert capsys.readouterr().err == ""
    warn("two")
    warn("two")
    assert capsys.readouterr().err == "warning: two\n" * 2 and warnings_so_far() == []


def test_a_run_inside_a_run_is_a_part_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with warned_again():
        warn("before")
        with warned_again():
            warn("inside")
        assert "of this run" not in capsys.readouterr().err
    assert capsys.readouterr().err == "2 warnings of this run:\n  - before\n  - inside\n"


def test_what_python_code_warns_of_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    kept = warnings.showwarning
    with warned_again():
        warnings.simplefilter("always")
        for _ in range(2):
            warnings.warn("an old\nfunction", RuntimeWarning, stacklevel=1)
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("warning: RuntimeWarning: an old function (telemetry/test_warned.py:")
    assert warnings.showwarning is kept


def test_a_long_list_has_the_newest() -> None:
    lines = listed([f"number {n}" for n in range(MOST + 5)])
    assert lines[:2] == [f"{MOST + 5} warnings of this run:", "  - and 5 more before these"]
    assert len(lines) == MOST + 2 and lines[-1].endswith(f"number {MOST + 4}")
    assert listed([]) == []
