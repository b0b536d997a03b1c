"""Every layout computes the gradients, losses, metrics and weights of one process; and docs/parity.* say so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tau2_lightning.strategy import balance
from tau2_lightning.strategy.families.qwen3 import FAMILY
from tests.strategy.parity import CONTROL, EVERY, QUICK, TOLERANCE, Case, measure
from tests.strategy.tiny import tiny_model
from tools.parity_table import BEGIN, END, RESULTS, SUMMARY_BEGIN, SUMMARY_END, table

Found = dict[Case, dict[str, float]]
ROOT = Path(__file__).parents[2]


def check(found: dict[str, float]) -> None:
    assert found["gradient"] <= TOLERANCE and found["gradient_size"] > 0.01
    for key in ("loss", "loss_after_a_step", "norm", "entropy"):
        assert found[key] <= TOLERANCE, key
    assert found["tokens"] == 0.0
    assert found["weights"] <= 2e-6  # one AdamW step divides by small numbers
    assert found["logprobs"] < 5e-6


@pytest.fixture(scope="module")
def quick() -> Found:
    return measure(QUICK)


@pytest.mark.parametrize("case", [case for case in QUICK if case != CONTROL], ids=lambda case: case.name)
def test_two_ranks(quick: Found, case: Case) -> None:
    check(quick[case])


def test_negative_control_mean_over_data_ranks_is_caught(quick: Found) -> None:
    """FSDP's own divisor (a mean) must fail the check: otherwise the grid could not detect a wrong scale."""
    assert quick[CONTROL]["gradient"] > 1e-3


def test_four_ranks() -> None:
    for found in measure([Case("d2p2"), Case("p2t2", tied=False)]).values():
        check(found)


def test_stages_of_unequal_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the head is worth many layers, the last stage has fewer: three and one here."""
    monkeypatch.setattr(balance, "TRAINED", 3.0)
    load = balance.head_load(tiny_model().config, FAMILY)
    assert balance.layers_of_stages(4, 2, load) == [[0, 1, 2], [3]]
    for found in measure([Case("p2"), Case("p2", tied=False)]).values():
        check(found)


@pytest.fixture(scope="module")
def every() -> Found:
    return measure(EVERY, timeout=560.0)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in EVERY if case != CONTROL], ids=lambda case: case.name)
def test_every_layout_model_and_schedule(every: Found, case: Case) -> None:
    check(every[case])


# ---- what the documents say -----------------------------------------------------------------------------------------


def test_the_stored_results_are_of_every_case_and_within_tolerance() -> None:
    stored = json.loads((ROOT / RESULTS).read_text())
    assert [Case(**{key: entry[key] for key in Case.__dataclass_fields__}) for entry in stored] == EVERY
    for entry in stored:
        assert (entry["gradient"] <= TOLERANCE) is not entry["mean"], entry


@pytest.mark.parametrize("short", [False, True], ids=["every-case", "summary"])
def test_the_tables_on_the_page_are_those_of_the_stored_results(short: bool) -> None:
    text = (ROOT / "docs/parity.md").read_text()
    begin, end = (SUMMARY_BEGIN, SUMMARY_END) if short else (BEGIN, END)
    found = re.search(re.escape(begin) + r"\n(.*?)\n" + re.escape(end), text, re.S)
    assert found is not None
    assert found.group(1).strip() == table(json.loads((ROOT / RESULTS).read_text()), short=short).strip()


def test_the_control_of_the_summary_keeps_its_own_gradient_size() -> None:
    stored = json.loads((ROOT / RESULTS).read_text())
    (control,) = [entry for entry in stored if entry["mean"]]
    assert table(stored, short=True).splitlines()[-1].endswith(f"| {control['gradient_size']:.2f} |")
