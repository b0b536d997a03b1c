"""The policy that a run starts from, and the checks that need it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
from tau2_lightning.strategy.weight_check import weight_violations
from tau2_lightning.telemetry.phases import PhaseClock

from .checkpoints import check_checkpoint, check_size, missing_checkpoint, planned_checkpoint, started_from
from .generation_rules import check_template_words
from .memory_fit import check_memory
from .openings import longest_opening
from .router_replay import with_router_replay

#: Keys without which the policy cannot be looked at.
_OF_THE_POLICY = {"actor.path", "actor.gguf", "actor.chat_template", "rollout.tool_call_parser"}
#: The beginnings of keys that decide what is played.
_OF_WHAT_IS_PLAYED = ("econfig", "domain", "train_dataset", "valid_dataset", "gconfig", "tau2")


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
    """Raise ConfigError for everything that keeps ``config`` from starting with the policy and the checkpoint."""
    if found := list(policy_violations(config, policy, checkpoint)):
        raise ConfigError(found)


def policy_violations(
    config: RunConfig, policy: Path, checkpoint: str | None, *, plays: bool = True, laid_out: bool = True
) -> Iterator[Violation]:
    """What keeps ``config`` from starting with the policy and the checkpoint. Ranks above 0 leave most of it to rank 0.

    ``plays=False``: what is played is refused already, so no prompt is looked at; ``laid_out=False``: the layout is.
    """
    yield from raised(check_checkpoint, checkpoint, policy)
    yield from raised(with_router_replay, config, policy)
    if global_rank() != 0:
        return
    options = raised(check_options, config, policy)
    if not any(violation.key == "actor.path" for violation in options):
        yield from weight_violations(policy)
    if laid_out:
        yield from options
        if plays and not options:
            yield from check_memory(config, policy)
    if plays:
        yield from raised(check_template_words, config, policy)
        yield from raised(check_prompts, config, policy)


def raised(check: Callable[..., object], *arguments: object) -> tuple[Violation, ...]:
    """The violations of the ConfigError that ``check`` raises; none where it raises none."""
    try:
        check(*arguments)
    except ConfigError as error:
        return error.violations
    return ()


def policy_problems(config: RunConfig, known: Sequence[Violation] = ()) -> list[Violation]:
    """What `prepare_policy` would refuse, as far as policy and checkpoint are on this machine. Makes and fetches
    nothing.

    ``known`` is what is wrong with ``config`` already: checks that need what it names are left out, and it is not
    listed again.
    """
    keys = {violation.key for violation in known}
    found = [] if "ckpt_path" in keys else [*missing_checkpoint(config)]
    checkpoint = None if found or "ckpt_path" in keys else planned_checkpoint(config)
    path, size = config.actor.path, config.actor.size or "s"
    if path is None:
        found += raised(check_size, checkpoint, size) if checkpoint is not None else ()
    elif keys & _OF_THE_POLICY:
        pass  # it does not load
    elif describes_only(path):  # what the files would say is left out: they are elsewhere
        options = raised(check_options, config, Path(path)) if "allocation_mode" not in keys else ()
        found += options or check_memory(config, path)
    elif Path(path).is_dir():
        plays = not any(key.startswith(_OF_WHAT_IS_PLAYED) for key in keys)
        laid_out = "allocation_mode" not in keys
        found += policy_violations(config, Path(path), checkpoint, plays=plays, laid_out=laid_out)
    listed = set(map(str, known))
    return [one for one in found if str(one) not in listed]


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
