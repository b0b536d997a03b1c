"""Policy folders with a tokenizer and a model of any architecture, and what a plan says about them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from tau2_lightning import train
from tau2_lightning.policy.tiny import build_tiny_policy


def policy_of(model: Any, folder: Path) -> Path:
    """``model`` beside the tiny policy's tokenizer. The model's configuration and weights replace the tiny policy's."""
    build_tiny_policy(folder, ["Phones, plans and bills. " * 20], vocab_size=320)
    model.save_pretrained(folder)
    return folder


def policy_described(folder: Path, changes: dict[str, Any]) -> Path:
    """The tiny policy with ``changes`` in its config.json: for models that are refused before weights are read."""
    build_tiny_policy(folder, ["Phones, plans and bills. " * 20], vocab_size=320)
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    return folder


def planned(capsys: pytest.CaptureFixture[str], folder: Path, *words: str) -> tuple[int, list[str]]:
    """Exit code of ``mode=plan``, and its lines that say why the run would not start."""
    words = (f"actor.path={folder}", "gconfig.max_tokens=200", "gconfig.max_new_tokens=20", *words)
    # No prompt fits into the positions of a tiny model.
    with patch("tau2_lightning.run.policy.check_prompts", lambda *_: None):
        code = train.main(["mode=plan", *words])
    told = capsys.readouterr().out.splitlines()
    return code, [line for line in told if line.startswith("would not start here")]
