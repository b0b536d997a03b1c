"""Case A14: a greedy validation is greedy for every agent, whatever temperature its framework sends."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cases.foreign import Stage, ask, stage, tasks


def asking(**fields: Any) -> Any:
    async def play(client: Any, data: Any) -> float:
        assert data["sampling"] is not None
        await ask(client, **fields)
        return 1.0

    return play


def temperatures(at: Stage) -> set[float]:
    return {sampling.temperature for _, sampling, _ in at.rig.engine.calls}


@pytest.mark.parametrize("sent", [{}, {"temperature": 0.7}, {"temperature": 1.0, "seed": 3}, {"stream": True}])
async def test_a14_the_runs_sampling_takes_the_place_of_the_clients_in_a_validation(sent: dict[str, Any]) -> None:
    async with stage(asking(**sent) if "stream" not in sent else streaming) as at:
        found = [task for task, _ in zip(tasks(), range(2), strict=False)]
        rollouts, _ = await at.collector.evaluate(found, 2, deadline=20, sampling={"temperature": 0.0})
        assert len(rollouts) == 4 and temperatures(at) == {0.0}
        # In training the client's fields are used, and the run's temperature is only the default.
        at.rig.engine.calls.clear()
        await at.collect()
        assert temperatures(at) == {sent.get("temperature", 1.0)}


async def streaming(client: Any, data: Any) -> float:
    async for _ in await ask(client, stream=True, temperature=1.0):
        pass
    return 1.0


async def test_a14_other_fields_of_the_client_stay() -> None:
    async with stage(asking(temperature=0.7, max_tokens=5, stop=["x"], seed=11)) as at:
        await at.collector.evaluate([next(tasks())], 1, deadline=20, sampling={"temperature": 0.0})
        ((_, sampling, _),) = at.rig.engine.calls
        assert (sampling.max_tokens, sampling.stop, sampling.seed) == (5, ("x",), 11)
