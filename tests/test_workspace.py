"""The layout of a W&B project: built without a network, saved by one command."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tau2_lightning import workspace
from tau2_lightning.run.compose import load_config

PROJECT = ("logger.project=p", "logger.entity=team")


def test_json_prints_the_layout_and_needs_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert workspace.main(["--json", "domain=mock"]) == 0
    chapters = json.loads(capsys.readouterr().out)
    assert chapters[0]["plots"][0]["names"][0] == "eval/mock/test/pass^1"


def test_without_the_package_the_error_names_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert workspace.main(["domain=mock", *PROJECT]) == 2
    told = capsys.readouterr().err
    assert "tau2-lightning[workspace]" in told and "--json" in told


def test_the_view_has_the_sections_and_the_summary() -> None:
    ws: Any = pytest.importorskip("wandb_workspaces.workspaces", reason="the extra workspace is not installed")
    made = workspace.as_workspace(load_config(["domain=mock", *PROJECT], check=False), "mine")
    assert isinstance(made, ws.Workspace) and (made.entity, made.project, made.name) == ("team", "p", "mine")
    assert made.sections[0].name == "Does it learn" and made.sections[0].is_open
    first = made.sections[0].panels[0]
    assert first.x == workspace.STEP and first.y[0] == "eval/mock/test/pass^1"
    assert "summary:best/pass^1" in made.runset_settings.pinned_columns
    spec = json.dumps(made._spec)  # as it is sent
    assert "eval/mock/test/pass^1_low" in spec and "reward/mean" in spec


def test_an_entity_is_needed_and_refusals_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ws: Any = pytest.importorskip("wandb_workspaces.workspaces", reason="the extra workspace is not installed")
    assert workspace.main(["domain=mock", "logger.project=p"]) == 2
    assert "logger.entity" in capsys.readouterr().err

    def refuse(_: Any) -> None:
        raise ValueError("no such team")

    monkeypatch.setattr(ws.Workspace, "save", refuse)
    assert workspace.main(["domain=mock", *PROJECT]) == 1
    assert "no such team" in capsys.readouterr().err
