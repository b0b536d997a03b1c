"""No dead options: every key of the schema is read in the package, or handed on by a reference in conf/."""

import ast
import re
from pathlib import Path

import pytest

import tau2_lightning
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.section import Section
from tau2_lightning.run.conf_files import config_dir

from .reads import Reads, below, reads_of

# Imported with all that it refers to: now every section of the schema is known.
SECTIONS = [one for one in below(Section) if one.__module__.startswith("tau2_lightning.")]


def referred_to() -> set[str]:
    """Keys that an entry of ``callbacks`` or ``logger`` takes as an argument: ``style: ${trainer.progress}``."""
    files = [path for group in ("callbacks", "logger") for path in (config_dir() / group).glob("*.yaml")]
    return {key for path in files for key in re.findall(r"\$\{([\w.]+)\}", path.read_text())}


def test_every_key_is_read():
    """A key that is read, and yet named here, is read of an expression whose type nothing annotates: annotate it."""
    reads, referred = reads_of(Path(tau2_lightning.__file__).parent), referred_to()
    sections = {field.annotation: name for name, field in RunConfig.model_fields.items()}
    unread = [
        f"{section.__name__}.{field}"
        for section in SECTIONS
        for field in section.model_fields
        if not reads.of(section, field) and f"{sections.get(section)}.{field}" not in referred
    ]
    assert not unread


@pytest.mark.parametrize(
    ("source", "read"),
    [
        ("def f(config: RunConfig): return config.rollout.retries", True),
        ("def f(config: RunConfig):\n c = config.rollout\n return c.retries", True),
        (
            "class A:\n def __init__(self, c: RunConfig): self.c, self.n = c, 1\n"
            " def f(self): return self.c.rollout.retries",
            True,
        ),
        ("def g() -> RunConfig: ...\ndef f(): return [c.rollout.retries for c in [g()]]", False),
        ("def g() -> RunConfig: ...\ndef f(): return [c.rollout.retries for c in (g(), 1)]", True),
        ("def f(config: RunConfig): return {n: v.rollout.retries for n, v in config.by_domain.items()}", True),
        ("def f(user: UserSettings): return user.retries, retries", False),
        ("def f(config: RunConfig): config.actor.retries, config.retries", False),
        ("def f(config: RunConfig): return config.model_dump()", False),
        ("def f(config: RunConfig): return make(**config.rollout.model_dump())", True),
        ("class RolloutConfig:\n @field_validator('retries')\n def f(cls, self: RolloutConfig): self.retries", False),
        ("class RolloutConfig:\n @property\n def f(self): return self.retries", True),
    ],
)
def test_a_name_alone_is_no_read(source: str, read: bool):
    rollout = next(one for one in SECTIONS if one.__name__ == "RolloutConfig")
    assert Reads([ast.parse(source)]).of(rollout, "retries") is read
