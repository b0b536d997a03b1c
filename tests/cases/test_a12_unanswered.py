"""Case A12: an episode with a request that failed on our side, or without any turn, is never scored."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import openai
import pytest

from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.rollout.collect.collector import CollectPlan
from tau2_lightning.rollout.collect.online import OnlineCollector
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tests.cases.foreign import REQUEST, USER, Stage, ask, stage
from tests.rollout.proxy.rig import Rig, until

MORE: list[Any] = [*USER, {"role": "user", "content": "Are you there?"}]


async def careless(client: openai.AsyncOpenAI, data: Any) -> float:
    """Request two turns; when one fails, take it for the agent's own failure and return 0."""
    try:
        await ask(client)
        await ask(client, MORE)
    except openai.OpenAIError:
        return 0.0
    return 1.0


def failing_second(at: Stage, fault: Exception | Generation, times: int = 1) -> None:
    """Let ``times`` requests fail from the second on: ``fault`` is raised, or is the engine's answer."""
    sample, asked = at.rig.engine._sample, 0

    def second(*arguments: Any) -> Generation:
        nonlocal asked
        asked += 1
        if not 2 <= asked < 2 + times:
            return sample(*arguments)
        if isinstance(fault, Exception):
            raise fault
        return fault

    at.rig.engine._sample = second  # type: ignore[method-assign, assignment]


FAULTS: list[tuple[Any, str]] = [
    (InfrastructureFault("engine", "crash"), "engine:crash"),
    (DeadlineExceeded("engine", 5, "sampling"), "engine:timeout"),
    (Generation((), (), (), "abort"), "engine:aborted"),
    (InfrastructureFault("engine", "http 502"), "engine:http_502"),
    (ZeroDivisionError("a defect of the proxy"), "proxy:internal_error"),
]


@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=[name for _, name in FAULTS])
async def test_a12_a_failure_that_the_agent_swallows_is_a_fault_with_a_cause(fault: Any, name: str) -> None:
    async with stage(careless) as at:
        failing_second(at, fault)
        with pytest.raises(InfrastructureFault) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == name


async def test_a12_such_an_episode_is_played_again_and_excluded_when_it_fails_again() -> None:
    async with stage(careless, retries=1) as at:
        failing_second(at, InfrastructureFault("engine", "crash"))
        assert (await at.runner.run(REQUEST)).reward == 1.0
        assert at.runner.faults == {"engine:crash": 1}
        at.rig.engine.fault = InfrastructureFault("engine", "crash")
        collection = await at.collect(n_samples=4)
        assert dict(collection.excluded) == {"engine:crash": 4} and collection.lost == 1


async def test_a12_a_failure_that_makes_the_agent_raise_is_ours_too() -> None:
    async def play(client: Any, data: Any) -> float:
        await ask(client)
        await ask(client, MORE)
        return 1.0

    async with stage(play, retries=1) as at:
        failing_second(at, InfrastructureFault("engine", "crash"))
        assert (await at.runner.run(REQUEST)).reward == 1.0
        assert at.runner.faults == {"engine:crash": 1}


async def test_a12_a_successful_retry_of_the_client_is_an_answer() -> None:
    async def play(client: openai.AsyncOpenAI, data: Any) -> float:
        patient = client.with_options(max_retries=3)
        await ask(patient)
        await ask(patient, MORE)
        return 1.0

    async with stage(play) as at:
        failing_second(at, InfrastructureFault("engine", "crash"), times=2)
        rollout = await at.runner.run(REQUEST)
        assert rollout.reward == 1.0 and not at.runner.faults
        assert [len(row.turns) for row in rollout.trajectories] == [1, 1]


async def test_a12_success_with_other_messages_is_no_answer() -> None:
    async def play(client: Any, data: Any) -> float:
        await ask(client)
        with suppress(openai.OpenAIError):
            await ask(client, MORE)
        await ask(client, [*USER, {"role": "user", "content": "Something went wrong. Go on."}])
        return 1.0

    async with stage(play) as at:
        failing_second(at, InfrastructureFault("engine", "crash"))
        with pytest.raises(InfrastructureFault, match="engine: crash"):
            await at.runner.run(REQUEST)


@pytest.mark.parametrize("how", ["at once", "half-way"])
async def test_a12_a_stream_that_fails(how: str) -> None:
    async def play(client: Any, data: Any) -> float:
        with suppress(openai.OpenAIError):
            async for _ in await ask(client, stream=True):
                if how == "half-way":
                    at.rig.engine.fault = InfrastructureFault("engine", "crash")
        return 0.0

    async with stage(play) as at:
        stream = at.rig.engine.stream

        async def breaking(*arguments: Any, **more: Any) -> Any:
            async for chunk in stream(*arguments, **more):
                yield chunk
                if at.rig.engine.fault is not None:
                    raise at.rig.engine.fault

        at.rig.engine.stream = breaking  # type: ignore[method-assign]
        at.rig.engine.delay = 0.01
        if how == "at once":
            at.rig.engine.fault = InfrastructureFault("engine", "crash")
        with pytest.raises(InfrastructureFault) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == "engine:crash"


async def test_a12_a_stream_of_several_choices_of_which_one_fails_after_another_is_recorded() -> None:
    async def play(client: Any, data: Any) -> float:
        with suppress(openai.OpenAIError):
            async for _ in await ask(client, stream=True, n=2):
                pass
        return 0.0

    async with stage(play, retries=1) as at:
        stream, begun = at.rig.engine.stream, 0

        async def breaking(*arguments: Any, **more: Any) -> Any:
            nonlocal begun
            begun += 1
            number = begun
            async for chunk in stream(*arguments, **more):
                if number == 2:
                    await until(lambda: bool(at.rig.store.sessions()[0].nodes))
                    raise InfrastructureFault("engine", "crash")
                yield chunk

        at.rig.engine.stream = breaking  # type: ignore[method-assign]
        rollout = await at.runner.run(REQUEST)
        assert at.runner.faults == {"engine:crash": 1}
        assert rollout.reward == 0.0, "the second try, of which no choice fails, is scored"


@pytest.mark.parametrize("stream", [True, False])
async def test_a12_a_client_that_leaves_before_the_answer(stream: bool) -> None:
    async def play(client: Any, data: Any) -> float:
        try:
            async with asyncio.timeout(0.2):
                answer = await ask(client, stream=stream)
                if stream:
                    async for _ in answer:
                        pass
        except TimeoutError:
            return 0.0
        return 1.0

    async with stage(play) as at:
        at.rig.engine.delay = 30.0
        with pytest.raises(InfrastructureFault) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == "session:client_left"
        at.rig.engine.delay = 0.0  # control: the same agent is scored when it gets its answer
        assert (await at.runner.run(REQUEST)).reward == 1.0


async def test_a12_a_stream_that_is_left_at_its_last_chunk_is_answered() -> None:
    async def play(client: Any, data: Any) -> float:
        stream = await ask(client, stream=True)
        async for chunk in stream:
            if chunk.choices[0].finish_reason:
                break
        await stream.close()
        return 1.0

    async with stage(play) as at:
        assert (await at.runner.run(REQUEST)).reward == 1.0


async def test_a12_of_two_equal_requests_one_answer_is_enough() -> None:
    async def play(client: Any, data: Any) -> float:
        both = [asyncio.create_task(ask(client)) for _ in range(2)]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for one in both:
            one.cancel()
        return 1.0

    async with stage(play) as at:
        generate, order = at.rig.engine.generate, iter((0.0, 30.0))

        async def uneven(*arguments: Any, **more: Any) -> Generation:
            await asyncio.sleep(next(order))
            return await generate(*arguments, **more)

        at.rig.engine.generate = uneven  # type: ignore[method-assign]
        assert (await at.runner.run(REQUEST)).reward == 1.0


@pytest.mark.parametrize("settings", [{"max_concurrent": 0}, {"rate_limit": 0.001}])
async def test_a12_a_proxy_that_refuses_for_its_own_limits(settings: dict[str, Any]) -> None:
    async with stage(careless, **settings) as at:
        with pytest.raises(InfrastructureFault) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name in ("proxy:overloaded", "proxy:rate_limit_exceeded")


async def test_a12_an_agent_that_never_calls_the_model() -> None:
    async def play(client: Any, data: Any) -> float:
        return 1.0

    async with stage(play) as at:
        collection = await at.collect()
        assert dict(collection.excluded) == {"session:no_turn": 2} and collection.groups == ()


async def test_a12_what_the_agents_request_causes_is_the_agents() -> None:
    """Control: a full context is answered with 400, and the agent's reward counts."""

    async def play(client: Any, data: Any) -> float:
        await ask(client)
        at.rig.engine._max_model_len = 3
        with pytest.raises(openai.BadRequestError, match="maximum context length"):
            await ask(client, MORE)
        return 0.0

    async with stage(play) as at:
        rollout = await at.runner.run(REQUEST)
        assert rollout.reward == 0.0 and len(rollout.trajectories) == 1


async def test_a12_a_proxy_server_that_is_gone_is_noted_by_the_clients_side() -> None:
    """Such a request never reaches the proxy; the HTTP client that a run gives to its agents records the failure."""
    async with stage(careless) as at:
        await at.rig.server.stop()
        with pytest.raises(InfrastructureFault) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == "proxy:connection"


async def test_a12_an_agent_with_a_connection_of_its_own_that_raises() -> None:
    class Plain:
        async def run(self, data: Any, *, base_url: str, api_key: str, **_: Any) -> float:
            async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
                await ask(client)
            return 1.0

    async with (
        Rig(ProxySettings()) as rig,
        episode_access(rig.service, rig.server.base_url, over_http=True, timeout=20) as access,
    ):
        runner = EpisodeRunner(Plain(), rig.store, access, timeout=20, retries=0)
        assert (await runner.run(REQUEST)).reward == 1.0
        await rig.server.stop()
        with pytest.raises(InfrastructureFault) as caught:
            await runner.run(REQUEST)
        assert caught.value.name == "proxy:connection"


@pytest.mark.parametrize("over_http", [True, False])
async def test_a12_both_forms_of_our_own_client(over_http: bool) -> None:
    class Careless:
        async def run(self, data: Any, *, client: Any, **_: Any) -> float:
            await client.complete({"messages": USER})
            try:
                await client.complete({"messages": MORE})
            except InfrastructureFault:
                return 0.0
            return 1.0

    async with (
        Rig(ProxySettings()) as rig,
        episode_access(rig.service, rig.server.base_url, over_http=over_http, timeout=20) as access,
    ):
        runner = EpisodeRunner(Careless(), rig.store, access, timeout=20, retries=0)
        assert (await runner.run(REQUEST)).reward == 1.0
        for fault, name in FAULTS:
            at = Stage(rig, runner, None)  # type: ignore[arg-type]
            failing_second(at, fault)
            with pytest.raises(InfrastructureFault) as caught:
                await runner.run(REQUEST)
            assert caught.value.name == name
            del rig.engine._sample


async def test_a12_sessions_of_outside_programs() -> None:
    async with Rig(ProxySettings()) as rig:
        collector = OnlineCollector(rig.store)
        root = rig.server.base_url.removesuffix("/v1")

        async def outside(*, fails: bool = False, retries: bool = False, asks: bool = True) -> None:
            session = rig.store.start(group_id="g", task_id="t")
            if fails:
                rig.engine.fault = InfrastructureFault("engine", "crash")
                assert (await rig.post(session.api_key, {"messages": USER})).status_code == 503
                rig.engine.fault = None
            if asks and (retries or not fails):
                await rig.post(session.api_key, {"messages": USER})
            end = f"{root}/sessions/{session.session_id}/end"
            headers = {"Authorization": f"Bearer {session.api_key}"}
            (await rig.http.post(end, json={"reward": float(retries)}, headers=headers)).raise_for_status()

        await outside(fails=True)
        await outside(asks=False)
        await outside(fails=True, retries=True)
        await outside()
        collection = await collector.collect(CollectPlan(1, 2), deadline=5)
        assert dict(collection.excluded) == {"engine:crash": 1, "session:no_turn": 1}
        assert [group.rewards for group in collection.groups] == [(1.0, 0.0)]


async def test_a12_failures_that_are_retried_for_long_do_not_pile_up() -> None:
    async with Rig(ProxySettings()) as rig:
        session = rig.store.start()
        rig.engine.fault = InfrastructureFault("engine", "crash")
        for _ in range(20):
            await rig.post(session.api_key, {"messages": USER})
        assert len(session.requests) == 1
        rig.engine.fault = None
        await rig.post(session.api_key, {"messages": USER})
        await until(lambda: not session.in_flight)
        assert rig.store.fault(session.session_id) is None
