"""The warm-started policy: dialogues -> supervised fine-tuning, made once and then taken from the cache."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.manifest import write_manifest
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.policy.dialogues import TextDialogue, encode_spans, render_spans
from tau2_lightning.policy.gguf import given_policy
from tau2_lightning.policy.loading import check_policy_path, load_tokenizer, quiet_transformers
from tau2_lightning.policy.tiny import build_tiny_policy, chat_template
from tau2_lightning.rollout.chat.template_words import template_kwargs
from tau2_lightning.rollout.engines import chat_format_of

from .dialogues import training_dialogues
from .digest import warm_start_digest
from .encoding import encode_as_sessions
from .fit import Rows, fine_tune
from .sources import data_files
from .work import FACTS, is_whole, wait_for, working_on

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig
    from tau2_lightning.policy.dialogues import EncodedDialogue

TOKENIZER_DEMONSTRATIONS = 400  # enough of them to train the tokenizer on


def warm_start_policy(
    config: RunConfig,
    log_dir: Path | None = None,
    accept: Callable[[Path], None] | None = None,
    stops: StopSignals | None = None,
) -> Path:
    """The Hugging Face folder of the policy after the configured warm start, made once and then taken from the cache.

    It starts from ``actor.path``, or from a tiny policy that is built on the spot. Ranks other than 0 wait for the
    result of rank 0. One in the cache whose bytes are not those that were written is made again. ``accept`` checks the
    policy before it is fine-tuned, and raises when the policy cannot be used. A warm start that was cut off goes on
    from its newest checkpoint; a signal that ``stops`` heeds ends it with one.
    Raises ConfigError for settings or data that cannot be used.
    """
    _check(config)
    quiet_transformers()
    given = None if config.actor.path is None else given_policy(config.actor)
    digest = warm_start_digest(config, given)
    folder = (
        config.cache_dir.absolute() / "warm_start" / f"{config.econfig.domain}-{config.actor.size or 'hf'}-{digest}"
    )
    if is_whole(folder):
        if accept is not None:
            accept(folder)
        return folder
    if global_rank() > 0 and config.actor.path is None:  # one process makes a tiny policy
        return wait_for(folder)
    with working_on(folder) as work:
        if work is None:
            return folder
        facts = _make(config, given, work, log_dir or work / "logs", accept, stops)
        if global_rank() > 0:
            return wait_for(folder)
        (work / "policy" / FACTS).write_text(json.dumps(facts, indent=2))
        write_manifest(work / "policy")
        (work / "policy").replace(folder)
    return folder


def _make(
    config: RunConfig,
    given: Path | None,
    work: Path,
    log_dir: Path,
    accept: Callable[[Path], None] | None,
    stops: StopSignals | None,
) -> dict[str, Any]:
    """Write the policy, made from the one at ``given`` or from scratch, to ``work/policy``; returns the facts that
    ``FACTS`` keeps beside it."""
    settings = config.warm_start
    progress = Console(stderr=True, quiet=config.trainer.progress == "off" or global_rank() > 0)
    started = time.perf_counter()
    dialogues, facts = training_dialogues(config, progress)
    training, held_out = held_apart(dialogues, settings.valid_share, settings.seed)
    if given is None:
        spans = [render_spans(dialogue, chat_template()) for dialogue in training]
        texts = [text for rendered in spans[:TOKENIZER_DEMONSTRATIONS] for text, _ in rendered]
        base = build_tiny_policy(
            work / "base",
            texts,
            seed=settings.seed,
            size=config.actor.size or "s",
            vocab_size=settings.vocab_size,
            max_position_embeddings=settings.max_position_embeddings,
        )
        tokenizer = load_tokenizer(base)
    else:
        base = given
        tokenizer = load_tokenizer(base, config.actor.chat_template)
    if accept is not None:
        accept(base)

    def encoded(chosen: Sequence[TextDialogue], say: bool) -> list[EncodedDialogue]:
        if given is None:
            rendered = spans if chosen is training else [render_spans(one, chat_template()) for one in chosen]
            return [encode_spans(each, tokenizer) for each in rendered]
        words = template_kwargs(config.gconfig)
        rows, how = encode_as_sessions(chat_format_of(config, base), chosen, config.rollout.history_policy, **words)
        if say:
            progress.print(f"warm start: {how}", highlight=False, soft_wrap=True)
        return rows

    every = Rows(encoded(training, say=True), encoded(held_out, say=False) if held_out else ())
    rows = every.within(settings.max_tokens)
    lengths = [len(row) for row in rows.training]
    facts |= {"dialogues": len(training), "rows": len(lengths)}
    facts |= {"dropped_as_too_long": len(every.training) - len(lengths)}
    facts |= {"tokens_per_dialogue": sum(lengths) / len(lengths)}
    facts |= {"action_tokens_per_dialogue": sum(int(d.action_mask.sum()) for d in rows.training) / len(lengths)}
    if held_out:
        facts |= {"held_out_dialogues": len(held_out), "held_out_rows": len(rows.held_out)}
    if facts["dropped_as_too_long"]:
        progress.print(
            f"warm start: {facts['dropped_as_too_long']} of {len(every.training)} rows are longer than "
            f"warm_start.max_tokens={settings.max_tokens} and are left out",
            highlight=False,
        )
    facts["seconds_preparing"] = time.perf_counter() - started
    facts |= fine_tune(config, base, rows, work / "policy", log_dir, stops)
    if global_rank() == 0:
        tokenizer.save_pretrained(work / "policy")
    facts["settings"] = settings.model_dump(mode="json")
    progress.print(
        f"warm start: {len(lengths)} rows, {facts['steps']} steps, {time.perf_counter() - started:.0f} s",
        highlight=False,
    )
    return facts


def held_apart(
    dialogues: Sequence[TextDialogue], share: float, seed: int
) -> tuple[Sequence[TextDialogue], list[TextDialogue]]:
    """Dialogues to train on, and ``share`` of the tasks' to measure the loss on: at least one task on either side.

    Dialogues of one task stay together. One without a task is its own. Deterministic in ``seed``.
    """
    names = [dialogue.task or f"dialogue {number}" for number, dialogue in enumerate(dialogues)]
    tasks = list(dict.fromkeys(names))
    if not share or len(tasks) < 2:
        return dialogues, []
    count = min(len(tasks) - 1, max(1, round(share * len(tasks))))
    apart = set(random.Random(seed).sample(tasks, count))
    training = [one for name, one in zip(names, dialogues, strict=True) if name not in apart]
    return training, [one for name, one in zip(names, dialogues, strict=True) if name in apart]


def _check(config: RunConfig) -> None:
    checked = config.actor.path is not None and config.actor.gguf is None  # `given_policy` checks what it makes
    found = check_policy_path(str(config.actor.path), template=config.actor.chat_template) if checked else []
    try:
        data_files(config.warm_start)
    except ConfigError as error:
        found += error.violations
    if found:
        raise ConfigError(found)
