"""The policy that a run starts from, and the checks that need it."""

from __future__ import annotations

from pathlib import Path

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.ranks import global_rank
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.policy.gguf import given_policy
from tau2_lightning.policy.loading import describes_only, load_model_config
from tau2_lightning.run.templates import check_template
from tau2_lightning.strategy.preflight import check_options
from tau2_lightning.telemetry.phases import PhaseClock

from .checkpoints import check_checkpoint, check_size, started_from
from .generation_rules import check_template_words
from .memory_fit import check_memory
from .openings import longest_opening
from .router_replay import with_router_replay


def prepare_policy(
    config: RunConfig, clock: PhaseClock, folder: RunFolder, checkpoint: str | None, stops: StopSignals | None = None
) -> Path:
    """The Hugging Face folder that training starts from.

    This is what ``actor.path`` names (a hub id is downloaded), or the tiny policy, which is warm-started once and kept;
    with a ``checkpoint`` the one that it started from, while that is there. A signal that ``stops`` heeds ends the warm
    start with a checkpoint.
    Raises ConfigError when ``checkpoint`` is of another model, or when opening prompts do not fit; before the warm
    start, where one is needed.
    """

    def accept(policy: Path) -> None:
        check_policy(config, policy, checkpoint)

    if config.actor.path is not None:
        policy = given_policy(config.actor)
        accept(policy)
        return policy
    from tau2_lightning.warm_start.make import warm_start_policy
    from tau2_lightning.warm_start.work import is_whole

    if checkpoint is not None:
        check_size(checkpoint, config.actor.size or "s")
        # Whatever else is configured now, a checkpoint goes with the tokenizer and the model that it was made of.
        kept = started_from(checkpoint)
        if kept is not None and kept.parent == config.cache_dir.absolute() / "warm_start" and is_whole(kept):
            accept(kept)
            return kept
    with clock.phase("warm start"):
        return warm_start_policy(config, folder.logs, accept, stops)


def check_policy(config: RunConfig, policy: Path, checkpoint: str | None) -> None:
    """Raise ConfigError for the first thing that keeps ``config`` from starting with the policy and the checkpoint."""
    check_checkpoint(checkpoint, policy)
    with_router_replay(config, policy)
    if global_rank() == 0:
        check_options(config, policy)
        if config.mode != "validate" and (short := list(check_memory(config, policy))):
            raise ConfigError(short)
        check_template_words(config, policy)
        check_prompts(config, policy)


def policy_problems(config: RunConfig) -> list[Violation]:
    """What `prepare_policy` would refuse, as far as policy and checkpoint are on this machine. Makes and fetches
    nothing."""
    checkpoint = None if config.ckpt_path in (None, "last") else str(config.ckpt_path)
    try:
        if config.actor.path is None:
            if checkpoint is not None:
                check_size(checkpoint, config.actor.size or "s")
        elif describes_only(config.actor.path):  # what the files would say is left out: they are elsewhere
            check_options(config, Path(config.actor.path))
            return list(check_memory(config, config.actor.path))
        elif Path(config.actor.path).is_dir():
            check_policy(config, Path(config.actor.path), checkpoint)
    except ConfigError as error:
        return list(error.violations)
    return []


def check_prompts(config: RunConfig, policy: Path) -> None:
    """Raise ConfigError when the policy's chat template cannot be used (see `check_template`), or when opening prompts
    leave no room for an answer in ``gconfig.max_tokens``."""
    if config.actor.path is not None and (problems := check_template(config, policy)[1]):
        raise ConfigError(problems)
    if config.rollout.workflow is not None:
        return  # the opening prompt of another agent is not known here
    longest, g = longest_opening(config, policy), config.gconfig
    needed = longest + g.max_new_tokens
    if needed <= g.max_tokens:
        return
    positions = getattr(load_model_config(policy), "max_position_embeddings", None) or needed
    remedy = f"Use at least {needed}, and more for a dialogue"
    if needed > positions:
        remedy = (
            f"This model has {positions} positions: lower gconfig.max_new_tokens, choose a domain with less text, "
            "econfig.policy=none, or a model with a longer context"
        )
        if longest >= positions:
            remedy = remedy.replace("lower gconfig.max_new_tokens, ", "")
    problem = f"opening prompts take up to {longest} tokens, an answer up to {g.max_new_tokens} more"
    raise ConfigError([Violation("gconfig.max_tokens", g.max_tokens, problem, remedy)])
