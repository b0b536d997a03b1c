"""Every letter of an allocation that docs/models.md marks with Y trains on two processes, and every N says why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy.families.registry import FAMILIES
from tau2_lightning.strategy.fitting import LETTERS, check_fits, why_not
from tests.strategy.distributed import fork
from tests.strategy.families.models import CONFIGS, batches, build, furthest, plain
from tests.strategy.tiny import clipped_loss, connected, full_gradients, share

TOLERANCE = 2e-6
LAYOUTS = {"d": "d2", "p": "p2", "t": "t2", "c": "c2", "e": "d2e2"}
CASES = [(name, letter) for name in CONFIGS for letter in LETTERS]
ABLE = [(name, letter) for name, letter in CASES if why_not(CONFIGS[name](8), letter) is None]


CONTROL = ("control", "t")
# The family of the control, whose embeddings lose their scale: it must not train like the family.
WRONG = "Gemma 3"


def work(cases: list[tuple[str, str]], folders: dict[str, str]) -> list[dict[str, Any]]:
    done = [_one(folders[name], LAYOUTS[letter]) for name, letter in cases]
    kind = CONFIGS[WRONG](8).model_type
    FAMILIES[kind] = replace(FAMILIES[kind], embedding_scale=None)
    return [*done, _one(folders[WRONG], "t2")]


def _one(folder: str, layout: str) -> dict[str, Any]:
    """From files, so that reading slice by slice and buffers without memory are part of it."""
    compute = connected(layout)
    compute.parallelize(folder)
    rows = share(batches(), compute)
    loss = compute.forward_backward(rows, clipped_loss).loss
    return {"loss": float(loss), "gradients": full_gradients(compute)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """One pair of processes for all cases."""
    folders: dict[str, str] = {}
    for name in CONFIGS:
        folder: Path = tmp_path_factory.mktemp("model")
        build(name).save_pretrained(folder)
        folders[name] = str(folder)
    ranks = fork(2, work, ABLE, folders, timeout=500.0)
    return {case: [rank[number] for rank in ranks] for number, case in enumerate([*ABLE, CONTROL])}


@pytest.fixture(scope="module")
def references() -> dict[str, dict[str, Any]]:
    return {name: plain(build(name)) for name in CONFIGS}


@pytest.mark.parametrize(("name", "letter"), ABLE)
def test_a_letter_trains_like_transformers_alone(
    name: str, letter: str, found: dict[tuple[str, str], Any], references: dict[str, dict[str, Any]]
) -> None:
    want, seen = references[name], set[str]()
    for rank in found[name, letter]:
        assert rank["loss"] == pytest.approx(want["loss"], abs=1e-6)
        for key, gradient in rank["gradients"].items():
            # Under a pipeline the last stage's copy of a tied matrix is called by the head's name.
            known = want["gradients"].get(key, want["gradients"]["model.embed_tokens.weight"])
            assert furthest([gradient], [known]) <= TOLERANCE, key
        seen |= rank["gradients"].keys()
    assert seen >= want["gradients"].keys()


def test_the_control_a_family_described_wrongly_shows(
    found: dict[tuple[str, str], Any], references: dict[str, dict[str, Any]]
) -> None:
    assert abs(found[CONTROL][0]["loss"] - references[WRONG]["loss"]) > 1e-4


@pytest.mark.parametrize(("name", "letter"), [case for case in CASES if case not in ABLE])
def test_a_letter_that_is_not_provided_is_refused_with_the_reason_of_the_table(name: str, letter: str) -> None:
    config = CONFIGS[name](8)
    reason = why_not(config, letter)
    assert reason and "\n" not in reason
    with pytest.raises(ConfigError) as refused:
        check_fits(config, ParallelSpec.parse(LAYOUTS[letter]))
    assert f"{letter} cannot lay out {config.model_type!r} models: {reason}. Use d" in str(refused.value)
