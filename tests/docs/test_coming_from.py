"""The fields of TRL that docs/coming_from_trl.md names are those of the installed TRL."""

from __future__ import annotations

import dataclasses
import inspect
import re

from .pages import ROOT

PAGE = (ROOT / "docs" / "coming_from_trl.md").read_text()
# Values in the first column, behind the field that takes them.
VALUES = {"group", "batch", "none", "dapo", "grpo", "dr_grpo", "cispo", "sapo"}


def left(section: str) -> set[str]:
    """The words in backticks in the first column of a section's table."""
    body = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
    assert body is not None
    rows = [line.split(" | ")[0] for line in body[1].splitlines() if line.startswith("| `")]
    return {word.partition("=")[0] for row in rows for word in re.findall(r"`([^`]+)`", row)}


def test_the_fields_of_grpo_config_exist() -> None:
    from trl import GRPOConfig

    fields = {field.name for field in dataclasses.fields(GRPOConfig)}
    named = left("GRPOConfig") - VALUES
    assert len(named) > 30
    assert named <= fields
    assert not {"num_generation"} <= fields


def test_the_arguments_of_the_trainer_exist() -> None:
    from trl import GRPOTrainer

    arguments = set(inspect.signature(GRPOTrainer.__init__).parameters)
    named = {word for word in left("The trainer") if word.isidentifier()}
    assert len(named) >= 6 and named <= arguments
