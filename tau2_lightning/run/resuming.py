"""What a resumed run changes against the configuration in its checkpoint: said, or refused where it cannot go on."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import without_secrets
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.strategy.checkpoint import adapters_in_words
from tau2_lightning.strategy.lora import LoRASettings

from .variant import IDLE

ABSENT = "-"


def check_resumed(config: RunConfig, meta: Mapping[str, Any]) -> None:
    """Say on the screen what differs from the configuration that the checkpoint with ``meta`` was made with.

    All of it holds from here on, the optimizer's settings included; weights and the optimizer's state go on. Every
    allocation reads a checkpoint of every other. Raises ConfigError for other adapters; other models, tokenizers and
    tasks are refused where they are known (`check_checkpoint`, `check_resumed_tasks`).
    """
    here = LoRASettings.of(config.actor.lora)
    ours = None if here is None else here.to_dict()
    theirs = meta.get("lora")
    if theirs != ours:
        problem = f"holds {adapters_in_words(theirs)}, but here are {adapters_in_words(ours)}"
        raise ConfigError([Violation("ckpt_path", config.ckpt_path, problem, "Resume with the same actor.lora")])
    stored = meta.get("configuration")
    if stored is None or global_rank():
        return
    changed = list(changes(stored, without_secrets(config)))
    if changed:
        text = "; ".join(f"{key}: {_short(old)} -> {_short(new)}" for key, old, new in changed)
        print(f"resuming with other settings (checkpoint -> now): {text}", file=sys.stderr)


def tell_of_tasks(state: Mapping[str, Any]) -> None:
    """Say on the screen how many tasks the run had begun and not trained on: ``state`` is that of the sampler. Their
    episodes were lost with it."""
    again = [task if isinstance(task, str) else task[-1] for task in state.get("again", ())]
    if again and not global_rank():
        some = ", ".join(again[:3]) + ", ..." * (len(again) > 3)
        told = f"resuming: {len(again)} tasks were begun and not trained on, they are played again: {some}"
        print(told, file=sys.stderr)


def changes(stored: Mapping[str, Any], here: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every dotted key whose value differs, with the old and the new value."""
    for key in dict.fromkeys((*stored, *here)):
        name = f"{prefix}{key}"
        if name in IDLE:
            continue
        old, new = stored.get(key, ABSENT), here.get(key, ABSENT)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from changes(old, new, f"{name}.")
        elif old != new:
            yield name, old, new


def _short(value: Any, longest: int = 60) -> str:
    text = str(value)
    return text if len(text) <= longest else f"{text[:longest]}..."
