"""Every layout computes the gradients, losses, metrics and weights of one process; and docs/parity.* say so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tau2_lightning.strategy import balance
from tau2_lightning.strategy.families.qwen3 import FAMILY
from tests.strategy.parity import CONTROLS, EVERY, QUICK, TOLERANCE, Case, measure
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


@pytest.mark.parametrize("case", [case for case in QUICK if not case.control], ids=lambda case: case.name)
def test_two_ranks(quick: Found, case: Case) -> None:
    check(quick[case])


@pytest.mark.parametrize("control", CONTROLS, ids=lambda case: case.name)
def test_negative_controls_are_caught(quick: Found, control: Case) -> None:
    """FSDP's own divisor (a mean) and a router that is not summed over t must fail the check: otherwise the grid could
    not detect a wrong scale or a missing sum."""
    assert quick[control]["gradient"] > 100 * TOLERANCE


def test_four_ranks() -> None:
    mixture = [Case(layout, "qwen3_moe", tied=False) for layout in ("d2t2e4", "p2t2e2")]
    for found in measure([Case("d2p2"), Case("p2t2", tied=False), *mixture]).values():
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
@pytest.mark.parametrize("case", [case for case in EVERY if not case.control], ids=lambda case: case.name)
def test_every_layout_model_and_schedule(every: Found, case: Case) -> None:
    check(every[case])


# ---- what the documents say -----------------------------------------------------------------------------------------


def test_the_stored_results_are_of_every_case_and_within_tolerance() -> None:
    stored = json.loads((ROOT / RESULTS).read_text())
    assert [Case(**{key: entry[key] for key in Case.__dataclass_fields__}) for entry in stored] == EVERY
    for entry in stored:
        assert (entry["gradient"] <= TOLERANCE) is not bool(entry["control"]), entry


@pytest.mark.parametrize("short", [False, True], ids=["every-case", "summary"])
def test_the_tables_on_the_page_are_those_of_the_stored_results(short: bool) -> None:
    text = (ROOT / "docs/parity.md").read_text()
    begin, end = (SUMMARY_BEGIN, SUMMARY_END) if short else (BEGIN, END)
    found = re.search(re.escape(begin) + r"\n(.*?)\n" + re.escape(end), text, re.S)
    assert found is not None
    assert found.group(1).strip() == table(json.loads((ROOT / RESULTS).read_text()), short=short).strip()


def test_the_controls_of_the_summary_keep_their_own_gradient_size() -> None:
    stored = json.loads((ROOT / RESULTS).read_text())
    controls = [entry for entry in stored if entry["control"]]
    for control, line in zip(controls, table(stored, short=True).splitlines()[-len(controls) :], strict=True):
        assert line.endswith(f"| {control['gradient_size']:.2f} |") and control["control"] in line
