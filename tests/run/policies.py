"""A tiny policy with a template that drops earlier thoughts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning.policy.tiny import build_tiny_policy
from tests.rollout.proxy.fixtures import template


def qwen3_policy(factory: pytest.TempPathFactory, positions: int) -> Path:
    """The tiny policy with ``positions`` and the template of Qwen3."""
    folder = factory.mktemp("policy")
    build_tiny_policy(folder, ["check the line. " * 30], vocab_size=320, max_position_embeddings=positions)
    (folder / "chat_template.jinja").write_text(template("qwen3"))
    return folder
