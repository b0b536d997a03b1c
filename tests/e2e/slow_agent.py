"""Telecom agents for the tests: one that waits before each turn, and one whose connection fails."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.episode.client import PolicyClient, failure
from tau2_lightning.rollout.episode.seeds import derived_seed
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow

SETTINGS = EnvironmentSettings("telecom", max_steps=14, policy="none", user=UserSettings("scripted"))


class SlowAgent(Tau2Workflow):
    """Waits ``low`` to ``high`` seconds before each turn, by new random numbers in every run. The reward is the
    parity of what the agent said, because an untrained policy solves nothing and tau2's reward would give no signal."""

    delay: tuple[float, float]

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


class UnluckyAgent(SlowAgent):
    """A SlowAgent that loses the connection in a share ``rate`` of the episodes, chosen by their seeds, at most
    ``times`` times in each. Half of the faults are a broken connection, half an answer 503."""

    rate: float
    times: int
    struck: Counter[int]

    def __init__(self, rate: float, times: int) -> None:
        super().__init__(0.0, 0.05)
        object.__setattr__(self, "rate", rate)
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "struck", Counter())

    def unlucky(self, seed: int) -> bool:
        """Whether the episode of ``seed`` has a fault."""
        return derived_seed(seed, "luck") % 1000 < 1000 * self.rate

    async def run(self, data: Mapping[str, Any], **connection: Any) -> dict[str, Any]:
        seed = data["seed"]
        if not self.unlucky(seed) or self.struck[seed] == self.times:
            return await super().run(data, **connection)
        self.struck[seed] += 1
        # The first or the second request fails; in the second case the turn sampled before is lost too.
        breaking = _Breaking(connection["client"], after=seed % 2, refuse=bool(seed // 2 % 2))
        return await super().run(data, **(connection | {"client": breaking}))


class _Breaking(PolicyClient):
    """Passes ``after`` requests on, then fails."""

    def __init__(self, client: PolicyClient, *, after: int, refuse: bool) -> None:
        super().__init__(timeout=120)
        self._client, self._left, self._refuse = client, after, refuse

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        if self._left:
            self._left -= 1
            return await self._client.complete(body)
        if self._refuse:
            raise failure(503, "injected")
        raise InfrastructureFault("proxy", "connection", "injected")

    async def _ask(self, body: Mapping[str, Any]) -> tuple[int, Any]:
        raise NotImplementedError
