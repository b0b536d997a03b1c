"""The warm-started policy: demonstrations -> supervised fine-tuning, made once and then taken from the cache."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tau2_lightning.errors import ConfigError, DeadlineExceeded, Violation
from tau2_lightning.launch.manifest import MANIFEST, damage, write_manifest
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.policy.dialogues import EncodedDialogue, encode_spans, render_spans
from tau2_lightning.policy.gguf import given_policy
from tau2_lightning.policy.loading import check_policy_path, load_tokenizer, quiet_transformers
from tau2_lightning.policy.tiny import build_tiny_policy, chat_template
from tau2_lightning.rollout.chat.template_words import template_kwargs
from tau2_lightning.rollout.engines import chat_format_of

from .dialogues import training_dialogues
from .digest import warm_start_digest
from .encoding import encode_as_sessions

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig
    from tau2_lightning.config.warm_start import WarmStartConfig


TOKENIZER_DEMONSTRATIONS = 400  # enough of them to train the tokenizer on
WAIT_FOR_RANK_0_SECONDS = 3600.0
FACTS = "warm_start.json"  # how the policy was made


def warm_start_policy(
    config: RunConfig, log_dir: Path | None = None, accept: Callable[[Path], None] | None = None
) -> Path:
    """The Hugging Face folder of the policy after the configured warm start, made once and then taken from the cache.

    It starts from ``actor.path``, or from a tiny policy that is built on the spot. Ranks other than 0 wait for the
    result of rank 0. One in the cache whose bytes are not those that were written is made again.
    ``accept`` checks the policy before it is fine-tuned, and raises when the policy cannot be used.
    Raises ConfigError for settings or data that cannot be used.
    """
    settings = config.warm_start
    _check(config, settings)
    quiet_transformers()
    given = None if config.actor.path is None else given_policy(config.actor)
    digest = warm_start_digest(config, given)
    folder = (
        config.cache_dir.absolute() / "warm_start" / f"{config.econfig.domain}-{config.actor.size or 'hf'}-{digest}"
    )
    if folder.exists():
        problem = _damage(folder)
        if problem is None:
            if accept is not None:
                accept(folder)
            return folder
        if global_rank() == 0:
            print(f"warning: the warm start in {folder} is damaged ({problem}): it is made again", file=sys.stderr)
            _set_aside(folder)
    if global_rank() > 0 and config.actor.path is None:  # one process makes a tiny policy
        return _wait_for(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        facts = _make(config, settings, given, work, log_dir or work / "logs", accept)
        if global_rank() > 0:
            return _wait_for(folder)
        (work / "policy" / FACTS).write_text(json.dumps(facts, indent=2))
        write_manifest(work / "policy")
        if not folder.exists():  # else another run has made the same policy meanwhile
            (work / "policy").replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _make(
    config: RunConfig,
    settings: WarmStartConfig,
    given: Path | None,
    work: Path,
    log_dir: Path,
    accept: Callable[[Path], None] | None,
) -> dict[str, Any]:
    """Write the policy, made from the one at ``given`` or from scratch, to ``work/policy``; returns the facts that
    ``FACTS`` keeps beside it."""
    progress = Console(stderr=True, quiet=config.trainer.progress == "off")
    started = time.perf_counter()
    dialogues, facts = training_dialogues(config, progress)
    if given is None:
        spans = [render_spans(dialogue, chat_template()) for dialogue in dialogues]
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
    if given is None:
        encoded = [encode_spans(rendered, tokenizer) for rendered in spans]
    else:
        words = template_kwargs(config.gconfig)
        chat_format, keep = chat_format_of(config, base), config.rollout.history_policy
        encoded, how = encode_as_sessions(chat_format, dialogues, keep, **words)
        progress.print(f"warm start: {how}", highlight=False, soft_wrap=True)
    kept = [dialogue for dialogue in encoded if len(dialogue) <= settings.max_tokens]
    if not kept:
        shortest = min(map(len, encoded))
        remedy = f"Raise it to {shortest} at least"
        raise ConfigError([Violation("warm_start.max_tokens", settings.max_tokens, "drops every dialogue", remedy)])
    facts |= {"dialogues": len(dialogues), "rows": len(kept), "dropped_as_too_long": len(encoded) - len(kept)}
    facts |= {"tokens_per_dialogue": sum(map(len, kept)) / len(kept)}
    facts |= {"action_tokens_per_dialogue": sum(int(d.action_mask.sum()) for d in kept) / len(kept)}
    facts["seconds_preparing"] = time.perf_counter() - started
    facts |= fine_tune(config, settings, base, kept, work / "policy", log_dir)
    if global_rank() == 0:
        tokenizer.save_pretrained(work / "policy")
    facts["settings"] = settings.model_dump(mode="json")
    progress.print(
        f"warm start: {len(kept)} rows, {settings.steps} steps, {time.perf_counter() - started:.0f} s",
        highlight=False,
    )
    return facts


def fine_tune(
    config: RunConfig,
    settings: WarmStartConfig,
    base: Path,
    dialogues: Sequence[EncodedDialogue],
    output: Path,
    log_dir: Path,
) -> dict[str, Any]:
    """Fine-tune the policy in ``base`` on ``dialogues`` and write it to ``output``. Returns the last metrics."""
    if settings.steps == 0:
        shutil.copytree(base, output)
        return {}
    import lightning as L
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.pytorch.loggers import CSVLogger

    from tau2_lightning.launch.cluster import trainer_accelerator, trainer_devices
    from tau2_lightning.strategy import ArchonStrategy
    from tau2_lightning.warm_start.module import SFTDataModule, SFTModule
    from tau2_lightning.warm_start.progress import SFTProgress

    tiny = config.actor.path is None
    devices, nodes = (1, 1) if tiny else trainer_devices(config)
    strategy = ArchonStrategy(
        "d1p1t1" if tiny else config.allocation_mode,
        schedule=config.actor.schedule,
        precision=settings.precision,
        activation_checkpointing=config.actor.activation_checkpointing,
        handwritten_elementwise=config.actor.handwritten_elementwise,
    )
    module = SFTModule(
        base,
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup_steps=settings.warmup_steps,
        decay_from=settings.decay_from,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
    )
    data = SFTDataModule(
        dialogues,
        steps=settings.steps,
        tokens_per_step=settings.tokens_per_step,
        max_tokens_per_mb=config.actor.max_tokens_per_mb,
        seed=settings.seed,
    )
    trainer = L.Trainer(
        strategy=strategy,
        accelerator=trainer_accelerator(config),
        devices=devices,
        num_nodes=nodes,
        plugins=[LightningEnvironment()] if tiny else None,
        max_epochs=1,
        limit_train_batches=settings.steps,
        logger=CSVLogger(log_dir, name="warm_start", version="", flush_logs_every_n_steps=50),
        callbacks=[SFTProgress("warm start", config.trainer.progress)],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        log_every_n_steps=10,
        default_root_dir=log_dir,
    )
    started = time.perf_counter()
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit:
        if trainer.interrupted:  # how Lightning passes on Ctrl-C
            raise KeyboardInterrupt from None
        raise
    strategy.save_pretrained(output)
    return {**module.last_metrics, "seconds_training": time.perf_counter() - started}


def _check(config: RunConfig, settings: WarmStartConfig) -> None:
    checked = config.actor.path is not None and config.actor.gguf is None  # `given_policy` checks what it makes
    found = check_policy_path(str(config.actor.path), template=config.actor.chat_template) if checked else []
    if settings.data is not None and not Path(settings.data).is_file():
        found.append(
            Violation("warm_start.data", settings.data, "no such file", "Give a JSONL file of OpenAI messages")
        )
    if found:
        raise ConfigError(found)


def _damage(folder: Path) -> str | None:
    """What is wrong with a warm start in the cache; None for a whole one. It got its manifest before its name."""
    return damage(folder) if (folder / MANIFEST).is_file() else f"it has no {MANIFEST}"


def _set_aside(folder: Path) -> None:
    """Remove a damaged warm start. Its name is free at once: another process may look for it."""
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    folder.rename(aside / "damaged")
    shutil.rmtree(aside, ignore_errors=True)


def _wait_for(folder: Path) -> Path:
    deadline = time.monotonic() + WAIT_FOR_RANK_0_SECONDS
    while _damage(folder) is not None:
        if time.monotonic() > deadline:
            raise DeadlineExceeded("warm start on rank 0", WAIT_FOR_RANK_0_SECONDS, f"waiting for {folder}")
        time.sleep(1.0)
    return folder
