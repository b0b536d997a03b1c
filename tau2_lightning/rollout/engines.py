"""The engines of a run: settings of the policy's engine, and the second engine that plays the user."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from tau2_lightning.config.limits import ENGINE_LORA_RANKS
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.environment import UserSettings, served_model
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.launch.placement import ServerPlace
from tau2_lightning.launch.ranks import Job
from tau2_lightning.policy.chat_templates import template_source
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.place import EnginePlace
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.engine.sleep_level import sleep_level
from tau2_lightning.rollout.proxy.app import create_app
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.server import ProxyServer
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore


def engine_settings(config: RunConfig, policy_path: Path, log_path: Path) -> EngineSettings:
    """Settings of the engine that serves the policy at ``policy_path``."""
    r = config.rollout
    placement = placement_of(config)
    generation = placement.allocation.generation
    return EngineSettings(
        backend=placement.allocation.engine,
        python=r.engine_python or "",
        api_key=r.engine_api_key or secrets.token_urlsafe(24),
        model_path=str(policy_path),
        dtype=config.actor.dtype,
        max_model_len=config.gconfig.max_tokens,
        max_num_seqs=r.max_num_seqs,
        kv_cache_gib=r.kv_cache_gib,
        gpu_memory_utilization=r.gpu_memory_utilization,
        port=r.engine_port,
        tensor_parallel=generation.spec.t if generation else 1,
        data_parallel=generation.spec.d if generation else 1,
        urls=tuple(r.engine_urls),
        places=_places(placement.engines),
        device="cpu" if placement.on_cpu else "auto",
        seed=config.seed,
        lora_rank=engine_lora_rank(config),
        routed_experts=bool(r.return_routed_experts),
        sleep_level=sleep_level(config),
        extra_args=tuple(r.engine_args),
        log_path=log_path,
        start_timeout_s=r.engine_start_timeout,
        max_restarts=r.max_restarts,
        restart_window_s=r.restart_window,
    )


def chat_format_of(config: RunConfig, policy_path: Path | str) -> ChatFormat:
    """The chat format of the policy at ``policy_path``, with the configured template and parsers.

    Raises ConfigError for a template that does not exist, ChatFormatError and ValueError as ChatFormat does.
    """
    given = config.actor.chat_template
    source = template_source(given) if given is not None else None
    r = config.rollout
    return ChatFormat.from_pretrained(
        policy_path, r.tool_call_parser, reasoning_parser=r.reasoning_parser, chat_template=source
    )


def engine_lora_rank(config: RunConfig) -> int:
    """The adapter rank to start the engine with: the smallest of vLLM's ranks that holds ours; 0 without adapters."""
    lora = config.actor.lora
    if not lora.r or lora.sync == "merged":
        return 0
    return next(rank for rank in ENGINE_LORA_RANKS if rank >= lora.r)


def _places(servers: Sequence[ServerPlace]) -> tuple[EnginePlace, ...]:
    """Places of servers as rank 0 starts them: on its own node directly, elsewhere through the agent of the node."""
    job = Job.current()
    if job is None:
        return tuple(EnginePlace(devices=server.devices) for server in servers)
    return tuple(
        EnginePlace(devices=server.devices)
        if server.node == job.node
        else EnginePlace(job.agents[server.node].rpartition(":")[0], server.devices, job.agents[server.node])
        for server in servers
    )


async def settle_user(config: RunConfig, user: UserSettings, stack: AsyncExitStack, log_path: Path) -> UserSettings:
    """``user`` completed for a run: pointed at an engine started for it, or with the name of the model at its URL.

    Raises as ``serve_user`` and ``served_model`` do.
    """
    if user.kind == "llm" and config.econfig.user_engine.path is not None:
        return await serve_user(config, user, stack, log_path)
    if user.kind == "llm" and user.base_url and config.econfig.user_llm is None:
        return replace(user, llm=await served_model(user))
    return user


async def serve_user(config: RunConfig, user: UserSettings, stack: AsyncExitStack, log_path: Path) -> UserSettings:
    """Start an engine for the simulated user behind a proxy of its own; returns ``user`` with the proxy's address.

    Its sessions are not recorded. Both end with ``stack``. Raises InfrastructureFault when the engine does not start.
    """
    u, r = config.econfig.user_engine, config.rollout
    assert u.path is not None
    placement = placement_of(config)
    component = placement.user
    servers = placement.servers(component)
    pool = EnginePool(
        EngineSettings(
            backend=placement.user_engine,
            python=r.engine_python or "",
            model_path=u.path,
            served_name=user.llm,
            dtype=u.dtype,
            tensor_parallel=component.spec.t if component else 1,
            data_parallel=component.spec.d if component else 1,
            places=_places(servers),
            device="cpu" if placement.on_cpu else "auto",
            max_model_len=u.max_tokens,
            max_num_seqs=r.max_num_seqs,
            kv_cache_gib=r.kv_cache_gib,
            gpu_memory_utilization=r.gpu_memory_utilization,
            extra_args=tuple(u.engine_args),
            log_path=log_path,
            start_timeout_s=r.engine_start_timeout,
            max_restarts=r.max_restarts,
            restart_window_s=r.restart_window,
        )
    )
    stack.push_async_callback(pool.stop)
    await pool.start()
    chat_format = await asyncio.to_thread(
        ChatFormat.from_pretrained, u.path, u.tool_call_parser, reasoning_parser=user.reasoning_parser
    )
    # The client gives up first. Otherwise a user's message that is cut off at its deadline would look complete.
    late = 2 * user.timeout_s
    settings = ProxySettings(model_name=user.llm, max_new_tokens=u.max_new_tokens, request_timeout=late)
    server = ProxyServer(create_app(ChatService(SessionStore(), chat_format, pool, settings)))
    await server.start()
    stack.push_async_callback(server.stop)
    await pool.wait_ready()
    return replace(user, base_url=server.base_url, api_key=settings.client_key)
