"""The seeds of the built-in episode's turns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tau2_lightning.environment import EnvironmentSettings
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow


class Client:
    """Records the request bodies."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        self.bodies.append(body)
        return {"role": "assistant", "content": "yes"}


async def seeds(episode: int, turns: int = 3, **options: Any) -> list[int | None]:
    client, workflow = Client(), Tau2Workflow(EnvironmentSettings("telecom"), {"temperature": 0.5}, **options)
    for turn in range(turns):
        dialogue = SimpleNamespace(seed=episode, messages=[{"role": "user", "content": "hm"}] * (2 * turn + 1))
        await workflow._complete(client, dialogue, {})  # type: ignore[arg-type]
    assert all(body["temperature"] == 0.5 for body in client.bodies)
    return [body.get("seed") for body in client.bodies]


async def test_every_turn_of_every_episode_has_its_own_seed_each_time_the_same() -> None:
    one, again, other = await seeds(7), await seeds(7), await seeds(8)
    assert one == again
    assert len({*one, *other}) == 6
    assert all(type(seed) is int and 0 <= seed < 2**31 for seed in one)


async def test_without_seeds_none_is_sent() -> None:
    assert await seeds(7, seeded=False) == [None] * 3
