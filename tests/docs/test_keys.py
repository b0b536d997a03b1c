"""Every key that a page names exists, and every value that it gives a key is one that the key takes."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from tau2_lightning import algorithm
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.conf_files import config_dir
from tau2_lightning.run.reference import entries

from .pages import TRUE_NOW, name_of

# Sections whose keys the schema leaves to others: vLLM, sbatch, the chat template, an agent, megatron-core.
MAPPINGS = (
    "scheduler.slurm", "econfig.user_llm_args", "gconfig.chat_template_kwargs", "rollout.workflow", "actor.megatron",
)  # fmt: skip
SECTIONS = (
    "actor|rollout|gconfig|econfig|trainer|algorithm|train_dataset|valid_dataset|cluster|scheduler|warm_start|logger"
)
NAMED = re.compile(rf"`((?:{SECTIONS})\.[a-z_][\w.]*)(?:=([^`]*))?`")
FUNCTIONS = frozenset(name for name in dir(algorithm) if callable(getattr(algorithm, name)))
# Other frameworks' words stand in the first column of these pages' tables.
FOREIGN = re.compile(r"coming_from_\w+\.md$")
# Values that stand for something: a name in capitals, n, x/y, three dots, several.
SYMBOL = re.compile(r"[A-Z]{2,}|\.\.\.|^[a-z]$|<|\{|\|")


def own_text(page: Path) -> str:
    """The page's text; of a page about another framework, without the first column of tables."""
    text = page.read_text()
    if not FOREIGN.search(page.name):
        return text
    cells = re.compile(r"^\| (?:[^|\\`]|\\.|`[^`]*`)*\|", re.M)
    return cells.sub("|", text)


def named_in(text: str) -> Iterator[tuple[str, str | None]]:
    """Keys between backticks, with their values. Not files (`warm_start.json`), not functions (`algorithm.merge`)."""
    for found in NAMED.finditer(text.replace("\\|", "|")):
        section, _, rest = found[1].rstrip(".").partition(".")
        if not rest.endswith((".json", ".csv")) and rest not in ("json", "csv") and rest not in FUNCTIONS:
            yield f"{section}.{rest}", found[2] and found[2].split(" ")[0]


@cache
def known_keys() -> frozenset[str]:
    """Keys and sections of the schema, with the keys of every algorithm."""
    names = {entry.key.name for entry in entries()}
    for path in (config_dir() / "algorithm").glob("*.yaml"):
        names |= {f"algorithm.{key}" for key in yaml.safe_load(path.read_text()) if key != "defaults"}
    return frozenset(names) | {name.rpartition(".")[0] for name in names}


@pytest.mark.parametrize("page", TRUE_NOW, ids=name_of)
def test_a_page_names_keys_that_exist(page: Path) -> None:
    unknown = {
        key
        for key, _ in named_in(own_text(page))
        if key not in known_keys() and not key.startswith(tuple(f"{one}." for one in MAPPINGS))
    }
    assert not unknown


def values() -> dict[str, dict[str, str]]:
    """By key, the values that pages give it, each with the page that does."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for page in TRUE_NOW:
        for key, value in named_in(own_text(page)):
            if value and not SYMBOL.search(value) and "_target_" not in key and key not in MAPPINGS:
                found[key].setdefault(value, name_of(page))
    return found


@pytest.mark.parametrize("key", sorted(values()))
def test_a_key_takes_the_values_that_pages_give_it(key: str) -> None:
    for value, page in values()[key].items():
        try:
            load_config([f"{key}={value}"], check=False)
        except ConfigError as error:
            raise AssertionError(f"{page}: {key}={value}: {error}") from error


def test_the_check_can_fail() -> None:
    assert len(values()) > 40
    assert {key for key, _ in named_in("`rollout.retry=3` and `rollout.retries`")} - known_keys() == {"rollout.retry"}
    table = "| theirs `rollout.n` | ours `gconfig.n_samples` |\n"
    page = Path(__file__).with_name("coming_from_x.md")
    assert FOREIGN.search(page.name)
    assert [key for key, _ in named_in(table)] == ["rollout.n", "gconfig.n_samples"]
