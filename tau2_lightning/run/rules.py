"""The rules that span several keys or need the machine, tau2 or the model, and the values that replace ``null``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tau2_lightning.config.allocation import Allocation, AllocationError
from tau2_lightning.config.megatron_words import refused_keys
from tau2_lightning.config.model_sizes import ModelSizes
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.net import free_port
from tau2_lightning.launch.ranks import Job, global_rank
from tau2_lightning.launch.rules import check_launch, pointing
from tau2_lightning.launch.run_folder import META
from tau2_lightning.run.engine_rules import check_engines, missing_imports
from tau2_lightning.run.environment_rules import check_environment
from tau2_lightning.run.exposure_rules import check_exposure
from tau2_lightning.run.folder_rules import check_folders
from tau2_lightning.run.generation_rules import check_generation
from tau2_lightning.run.instantiate import check_targets
from tau2_lightning.run.memory_rules import check_memory_keys
from tau2_lightning.run.templates import check_template
from tau2_lightning.run.trainer_rules import check_trainer
from tau2_lightning.run.url_rules import check_urls
from tau2_lightning.run.weight_sync_rules import check_weight_sync

Defaults = Callable[[], RunConfig]


def check_config(config: RunConfig, known: Sequence[Violation] = (), default: Defaults | None = None) -> RunConfig:
    """The configuration with every ``null`` resolved. Raises ConfigError that lists all violations.

    ``known`` are violations that were found before; they are not listed again. What imports torch or tau2, which takes
    seconds, is checked in the end. Where the run is refused already, sections that are as ``default`` makes them are
    left out: they are known to be right.
    """
    found = [*_shape(config), *check_launch(config), *_shares(config), *_machine(config)]
    found += [*_policy(config), *_adapters_and_shards(config)]
    found += refused_keys(config.actor.megatron)
    found += check_folders(config)
    found += [*check_urls(config), *check_exposure(config), *check_trainer(config), *check_targets(config)]
    found += [*check_generation(config), *check_engines(config), *check_weight_sync(config), *check_memory_keys(config)]
    if config.rollout.workflow is not None:
        from tau2_lightning.rollout.episode.workflow import check_workflow

        found += check_workflow(config.rollout.workflow)
    config, problems = check_template(config)
    found += problems
    usual = default() if default is not None and (found or known) else None
    if usual is None or config.algorithm != usual.algorithm:
        found += _algorithm(config)
    if usual is None or _played(config) != _played(usual):
        config, problems = check_environment(config)
        found += problems
    if found:
        raise ConfigError(found)
    return config


def _played(config: RunConfig) -> tuple[object, ...]:
    """What decides which tasks are played, and with whom. Real models play longer than the tiny one, which is right."""
    splits = (config.train_dataset.split, config.valid_dataset.split)
    return config.econfig.model_copy(update={"max_steps": 1}), config.domains, splits


def _allocation(config: RunConfig) -> Allocation | None:
    """The allocation; None when it cannot be read, which `check_launch` reports."""
    try:
        return Allocation.parse(config.allocation_mode)
    except AllocationError:
        return None


def _shape(config: RunConfig) -> Iterator[Violation]:
    g = config.gconfig
    if g.max_new_tokens >= g.max_tokens:
        yield Violation(
            "gconfig.max_new_tokens",
            g.max_new_tokens,
            f"leaves no room for a prompt in a context of {g.max_tokens} tokens",
            "Lower it, or raise gconfig.max_tokens",
        )
    truncated = [("gconfig.top_p", g.top_p)] if g.top_p < 1 else []
    truncated += [("gconfig.top_k", g.top_k)] if g.top_k > 0 else []
    for key, value in truncated if config.mode == "train" else ():
        problem = "the engine's log-probs would be of a truncated distribution that the trainer does not compute"
        yield Violation(key, value, problem, "Train with top_p=1 and top_k=-1; temperature is free")
    if config.mode == "validate" and config.ckpt_path == "last" and config.trial_name is None:
        yield Violation(
            "ckpt_path", "last", "does not say of which run", "Name trial_name (and experiment_name), or give a path"
        )
    given = Path(config.ckpt_path) if config.ckpt_path not in (None, "last") else None
    if given is not None and not (given / META).is_file():
        problem = "is no checkpoint of this project" if given.exists() else "does not exist"
        yield Violation("ckpt_path", config.ckpt_path, problem, f"Give a folder with a {META} in it, or `last`")


def _shares(config: RunConfig) -> Iterator[Violation]:
    allocation = _allocation(config)
    training = allocation.training if allocation else None
    shares = (training.spec.d if training else 1) * config.actor.ppo_n_minibatches
    rollouts = config.train_dataset.batch_size * config.gconfig.n_samples
    if rollouts % shares:
        yield Violation(
            "train_dataset.batch_size",
            config.train_dataset.batch_size,
            f"groups of {config.gconfig.n_samples} make {rollouts} rollouts, which do not divide into {shares} "
            "shares (data-parallel ranks times minibatches)",
            f"batch_size x gconfig.n_samples must be a multiple of {shares}",
        )


def _adapters_and_shards(config: RunConfig) -> Iterator[Violation]:
    from tau2_lightning.config.limits import ENGINE_LORA_RANKS

    allocation = _allocation(config)
    training = allocation.training if allocation else None
    copies, ranks = config.actor.fsdp.replicate, training.spec.d * training.spec.c if training else 1
    if training and ranks % copies:
        problem = f"does not divide the {ranks} ranks that d and c make in {config.allocation_mode}"
        yield Violation("actor.fsdp.replicate", copies, problem, "Use a divisor; 1 shards the parameters over all")
    lora, largest = config.actor.lora, ENGINE_LORA_RANKS[-1]
    if lora.sync == "adapter" and lora.r > largest:
        remedy = "Lower it, or set actor.lora.sync=merged"
        yield Violation("actor.lora.r", lora.r, f"is more than the {largest} that vLLM takes", remedy)


def _machine(config: RunConfig) -> Iterator[Violation]:
    if global_rank() or (config.scheduler.type != "local" and Job.current() is None):
        return  # rank 0 has checked its own machine, and may use the ports already
    host = config.rollout.host
    for key, port in (("rollout.port", config.rollout.port), ("rollout.engine_port", config.rollout.engine_port)):
        if port and not _port_is_free(host, port):
            yield Violation(key, port, f"is taken on {host}", "Choose another, or 0 for any free port")


def _algorithm(config: RunConfig) -> list[Violation]:
    from tau2_lightning.run.algorithm import instantiate_algorithm

    try:
        instantiate_algorithm(config)
    except ConfigError as error:
        return list(error.violations)
    return []


def _port_is_free(host: str, port: int) -> bool:
    try:
        free_port(host, port)
    except OSError:
        return False
    return True


def _policy(config: RunConfig) -> list[Violation]:
    from tau2_lightning.policy.gguf import check_source, is_made
    from tau2_lightning.policy.loading import check_policy_path, describes_only

    user, key = config.econfig.user_engine.path, "econfig.user_engine.path"
    found = [] if user is None else check_policy_path(user, key) or _weights(user, key)
    if config.actor.path is None:
        return [*found, *_gguf_without_path(config), *_tiny_fits(config)]
    if config.actor.gguf is not None and not is_made(Path(config.actor.path)):
        return [*found, *check_source(config.actor.gguf)]  # it is made later: that takes minutes
    if config.plan and describes_only(config.actor.path):  # of a machine that has the rest of the model
        return [*found, *_layout_fits(config)]
    if actor := check_policy_path(config.actor.path, template=config.actor.chat_template):
        return found + actor
    layout = list(_layout_fits(config))
    # Of a model that cannot be trained, the weights do not matter.
    known = any(violation.key == "actor.path" for violation in layout)
    return found + layout + ([] if known else _weights(config.actor.path, "actor.path"))


def _weights(path: str, key: str) -> list[Violation]:
    from tau2_lightning.strategy.weight_check import weight_violations

    return weight_violations(path, key)


def _gguf_without_path(config: RunConfig) -> Iterator[Violation]:
    if config.actor.gguf is not None:
        remedy = "Set actor.path to the folder to make, or choose actor=smollm2"
        yield Violation("actor.gguf", config.actor.gguf, "there is no folder to write it to", remedy)


def _tiny_fits(config: RunConfig) -> Iterator[Violation]:
    from tau2_lightning.policy.tiny import SIZES

    size = SIZES[config.actor.size or "s"]
    layers, heads = size["num_hidden_layers"], size["num_attention_heads"]
    yield from _model_fits(config, ModelSizes(layers, heads, kv_heads=1, experts=0, name="the tiny policy"))
    positions = config.warm_start.max_position_embeddings
    if config.gconfig.max_tokens > positions:
        problem = f"is more than the {positions} positions of the tiny policy"
        remedy = "Lower it, or raise warm_start.max_position_embeddings"
        yield Violation("gconfig.max_tokens", config.gconfig.max_tokens, problem, remedy)


def _layout_fits(config: RunConfig) -> Iterator[Violation]:
    from tau2_lightning.policy.loading import load_model_config
    from tau2_lightning.strategy.fitting import sizes_of
    from tau2_lightning.strategy.preflight import model_violations

    path = str(config.actor.path)
    refused = list(model_violations(config, path))
    yield from refused
    model = load_model_config(path)
    if not refused:
        yield from _model_fits(config, sizes_of(model, path))
        yield from missing_imports(config, model)
    longest = getattr(model, "max_position_embeddings", None)
    if longest and config.gconfig.max_tokens > longest:
        problem = f"is more than the {longest} positions of {path}"
        yield Violation("gconfig.max_tokens", config.gconfig.max_tokens, problem, f"Use at most {longest}")


def _model_fits(config: RunConfig, model: ModelSizes) -> Iterator[Violation]:
    """Whether the allocation can split ``model``."""
    allocation = _allocation(config)
    try:
        if allocation is not None:
            allocation.check_model(model)
    except AllocationError as error:
        yield pointing(error)
