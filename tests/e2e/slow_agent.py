"""An agent over telecom whose tools and user take their time, and which is rewarded for how it spells."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any

from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings
from tau2_lightning.rollout.episode import Tau2Workflow

SETTINGS = EnvironmentSettings("telecom", max_steps=14, policy="none", user=UserSettings("scripted"))


class SlowAgent(Tau2Workflow):
    """Waits ``low`` to ``high`` seconds before each turn. An untrained policy solves nothing, so that tau2's reward
    would give no group a signal: the reward is the parity of what the agent said."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__(SETTINGS, {"temperature": 1.0})
        object.__setattr__(self, "delay", (low, high))

    async def run(self, data: Mapping[str, Any], **connection: Any) -> dict[str, Any]:
        result = await super().run(data, **connection)
        said = [m["content"] or "" for m in result["outcome"].simulation["messages"] if m["role"] == "assistant"]
        return result | {"reward": float(sum(map(ord, "".join(said))) % 2)}

    async def _complete(self, client: Any, dialogue: Dialogue, sampling: Mapping[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(random.uniform(*self.delay))
        return await super()._complete(client, dialogue, sampling)
