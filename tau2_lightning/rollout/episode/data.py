"""What a user's agent is told about its task, under the names that AReaL's tau2 agent reads."""

from __future__ import annotations

from typing import Any

from tau2_lightning.config.environment import EnvironmentConfig
from tau2_lightning.environment import EnvironmentSettings, TaskRef


def task_data(task: TaskRef, settings: EnvironmentSettings, config: EnvironmentConfig) -> dict[str, Any]:
    """``domain`` and ``split`` of ``task``, and ``econfig``: exactly the fields of AReaL's ``Tau2EnvConfig``.

    ``settings`` are those of the running environment: they hold the user simulator's address and model also where the
    run starts its server itself. No key of an API is in it.
    """
    user = settings.user
    return {
        "domain": task.domain,
        "split": task.split,
        "econfig": {
            "domain": task.domain,
            "max_steps": settings.max_steps,
            "add_thinking_tool": settings.add_thinking_tool,
            "solo_mode": settings.solo_mode,
            "user_llm_base_url": user.base_url or None,
            "user_llm": user.llm or None,
            "user_llm_args": dict(user.llm_args),
            "turn_discount": config.turn_discount,
            "invalid_format_penalty": config.invalid_format_penalty,
        },
    }
