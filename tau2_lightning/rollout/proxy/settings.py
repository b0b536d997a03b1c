"""Settings of the proxy: limits, keys and policies."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tau2_lightning.rollout.chat.template_words import template_kwargs
from tau2_lightning.rollout.deadlines import Limits

if TYPE_CHECKING:
    from tau2_lightning.config.schema import RunConfig


@dataclass(frozen=True)
class ProxySettings:
    """Limits, keys and policies of the proxy. All times are seconds.

    ``admin_key`` opens everything; ``client_key`` opens the OpenAI surface without recording. ``max_new_tokens`` caps
    one completion. ``temperature`` is the default of a request that names none; only turns sampled with it are trained
    on. ``max_body_bytes`` limits the body of one request, ``max_held_bytes`` those of all that run. ``request_timeout``
    (seconds) ends a completion, which keeps the tokens sampled so far; a client may take ``body_timeout`` to send its
    request. ``rate_limit``: requests per second and key, 0 for no limit;
    ``max_concurrent``: requests that may run simultaneously. ``enforce_tool_choice``: constrain sampling by a grammar
    in recorded sessions too, although it changes the sampled distribution there (plain clients are always constrained).
    ``history_policy``: when the chat template would rewrite sampled turns (Qwen3 removes reasoning), ``keep`` their
    tokens or ``branch``. ``template_kwargs``: arguments of the chat template, unless the request or its session gives
    others. ``return_routed_experts``: ask the engine for the experts that the model chose in recorded turns.
    """

    model_name: str = "policy"
    admin_key: str = field(default_factory=lambda: "admin-" + secrets.token_urlsafe(32), repr=False)
    client_key: str = field(default_factory=lambda: "client-" + secrets.token_urlsafe(32), repr=False)
    max_new_tokens: int = 8192
    temperature: float = 1.0
    request_timeout: float = 600.0
    body_timeout: float = 30.0
    max_body_bytes: int = 16 * 2**20
    max_held_bytes: int = 2**30
    max_messages: int = 4096
    rate_limit: float = 0.0
    max_concurrent: int = 4096
    enforce_tool_choice: bool = False
    history_policy: Literal["keep", "branch"] = "keep"
    reap_interval: float = 30.0
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    return_routed_experts: bool = False

    @classmethod
    def of(cls, config: RunConfig, **more: Any) -> ProxySettings:
        """The settings of a run's proxy; ``more`` are further fields."""
        r = config.rollout
        return cls(
            max_new_tokens=config.gconfig.max_new_tokens,
            temperature=config.gconfig.temperature,
            request_timeout=Limits.of(config).request,
            enforce_tool_choice=r.enforce_tool_choice,
            history_policy=r.history_policy,
            rate_limit=r.rate_limit,
            template_kwargs=template_kwargs(config.gconfig),
            return_routed_experts=bool(r.return_routed_experts),
            **more,
        )
