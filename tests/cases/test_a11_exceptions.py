"""Case A11: an exception of a user's agent ends its episode and is counted by type; too many of them stop the run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest

from tau2_lightning.errors import (
    ConfigError,
    DeadlineExceeded,
    InfrastructureFault,
    ScoreDisagreement,
    SharedStateChanged,
    Tau2LightningError,
    TooManyFaults,
    Violation,
    WorkflowFault,
)
from tau2_lightning.rollout.collect.collector import CollectPlan
from tau2_lightning.rollout.collect.overlapped import AsyncCollector
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.run.exit import exit_code
from tests.cases.foreign import REQUEST, USER, Play, ask, stage, tasks
from tests.rollout.proxy.rig import Rig


def failing(share: int, error: Callable[[], BaseException]) -> Play:
    """An agent that raises in the first ``share`` of every ten episodes."""
    played = iter(range(10**6))

    async def play(client: Any, data: Any) -> float:
        number = next(played)
        await ask(client)
        if number % 10 < share:
            raise error()
        return float(number % 2)

    return play


async def test_a11_episodes_that_raise_are_excluded_by_type_and_the_run_goes_on() -> None:
    async with stage(failing(3, lambda: ValueError("no such page")), retries=2, max_fault_fraction=0.5) as at:
        collection = await at.collect(n_groups=10, n_samples=10)
        assert dict(collection.excluded) == {"workflow:ValueError": 30}
        assert sum(len(group.rollouts) for group in collection.all_groups) == 70
        assert at.runner.faults == {"workflow:ValueError": 30}, "no episode may be retried"
        assert at.collector.progress.why_excluded == " (workflow:ValueError 30)"
        assert "30 excluded (workflow:ValueError 30)" in at.collector.progress.describe()


async def test_a11_the_budget_stops_the_run_with_the_newest_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    async with stage(failing(3, lambda: ValueError("no such page")), max_fault_fraction=0.2) as at:
        with pytest.raises(TooManyFaults) as caught:
            await at.collect(n_groups=10, n_samples=10)
    told = str(caught.value)
    assert "21 of 100 episodes are excluded (workflow:ValueError 21)" in told
    assert "rollout.max_fault_fraction=0.2" in told
    assert "ValueError: no such page" in told and "test_a11_exceptions.py" in told, told
    assert not isinstance(caught.value, InfrastructureFault), "the run would be retried"

    def stops() -> int:
        raise caught.value

    assert exit_code(stops) == 1
    assert "workflow:ValueError 21" in capsys.readouterr().err


async def test_a11_the_budget_holds_for_a_validation_and_for_collection_beside_training() -> None:
    async with stage(failing(10, lambda: ValueError("x")), max_fault_fraction=0.5) as at:
        found = [task for task, _ in zip(tasks(), range(4), strict=False)]
        with pytest.raises(TooManyFaults, match="5 of 8 episodes .* in one validate"):
            await at.collector.evaluate(found, 2, deadline=20)
        ahead = AsyncCollector(at.collector, tasks(), CollectPlan(2, 4), max_head_offpolicyness=1)
        ahead.start()
        with pytest.raises(TooManyFaults, match="5 of 8 episodes .* in one rollout"):
            await ahead.take(deadline=20)
        await ahead.close()


async def test_a11_faults_within_the_budget_of_a_batch_that_is_played_ahead() -> None:
    async with stage(failing(3, lambda: ValueError("x")), max_fault_fraction=0.5) as at:
        plan = CollectPlan(2, 10, filter_groups=False)
        ahead = AsyncCollector(at.collector, tasks(), plan, max_head_offpolicyness=1)
        ahead.start()
        for version in range(1, 5):
            collection = await ahead.take(deadline=20)
            assert set(collection.excluded) == {"workflow:ValueError"}
            at.rig.engine.version = version
            ahead.advance(version)
        await ahead.close()


def grouped() -> BaseException:
    return ExceptionGroup("two tools", [ExceptionGroup("inner", [LookupError("gone")]), ValueError("later")])


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (lambda: TimeoutError("theirs"), "TimeoutError"),
        (lambda: asyncio.CancelledError("theirs"), "CancelledError"),
        (lambda: SystemExit(3), "SystemExit"),
        (grouped, "LookupError"),
    ],
)
async def test_a11_any_exception_is_counted_by_its_type(error: Callable[[], BaseException], name: str) -> None:
    async with stage(failing(10, error), timeout=60.0) as at:
        with pytest.raises(WorkflowFault) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == f"workflow:{name}"


async def test_a11_a_timeout_of_theirs_after_5_ms_is_theirs() -> None:
    async def play(client: Any, data: Any) -> float:
        await asyncio.wait_for(ask(client), 0.005)
        return 1.0

    async with stage(play, timeout=60.0) as at:
        at.rig.engine.delay = 30.0
        with pytest.raises(WorkflowFault) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == "workflow:TimeoutError"
        assert not isinstance(caught.value, DeadlineExceeded)


@pytest.mark.parametrize("over_http", [True, False])
async def test_a11_so_it_is_with_our_own_client(over_http: bool) -> None:
    class Hasty:
        async def run(self, data: Any, *, client: Any, **_: Any) -> float:
            await asyncio.wait_for(client.complete({"messages": USER}), 0.05)
            return 1.0

    async with (
        Rig(ProxySettings()) as rig,
        episode_access(rig.service, rig.server.base_url, over_http=over_http, timeout=20) as access,
    ):
        rig.engine.delay = 30.0
        with pytest.raises(WorkflowFault, match="TimeoutError"):
            await EpisodeRunner(Hasty(), rig.store, access, timeout=60, retries=0).run(REQUEST)


@pytest.mark.parametrize("how", ["waits", "swallows", "turns it into another error"])
async def test_a11_our_own_deadline_stays_ours_whatever_the_agent_makes_of_it(how: str) -> None:
    async def play(client: Any, data: Any) -> float:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if how == "waits":
                raise
            if how != "swallows":
                raise ValueError("interrupted") from None
        return 1.0

    async with stage(play, timeout=0.05) as at:
        with pytest.raises(DeadlineExceeded, match="playing task t") as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == "episode:timeout"


@pytest.mark.parametrize(
    "error",
    [
        ConfigError([Violation("econfig.domain", "x", "unknown", "Use telecom")]),
        ScoreDisagreement("fast path 1, tau2 0"),
        SharedStateChanged("the pristine database has changed"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a11_errors_that_make_every_score_doubtful_stop_the_run_at_once(error: Tau2LightningError) -> None:
    async with stage(failing(10, lambda: ExceptionGroup("inside", [error]))) as at:
        with pytest.raises(type(error)):
            await at.collect()


async def test_a11_a_cancelled_run_is_cancelled_and_never_an_episodes_fault() -> None:
    started = asyncio.Event()

    async def play(client: Any, data: Any) -> float:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError("while it was cancelled") from None
        return 1.0

    async with stage(play, retries=5) as at:
        running = asyncio.create_task(at.collect())
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert not at.runner.faults


async def test_a11_a_fault_that_the_agent_names_itself_is_retried() -> None:
    def fault() -> BaseException:
        return InfrastructureFault("search", "quota")

    async with stage(failing(1, fault), retries=1) as at:
        assert (await at.runner.run(REQUEST)).reward == 1.0
        assert at.runner.faults == {"search:quota": 1}


async def test_a11_a_full_context_has_a_name_of_its_own() -> None:
    async def play(client: Any, data: Any) -> float:
        await ask(client)
        return 1.0

    async with stage(play) as at:
        at.rig.engine._max_model_len = 3
        with pytest.raises(WorkflowFault) as caught:
            await at.runner.run(REQUEST)
        assert caught.value.name == "workflow:context_length_exceeded"
        assert isinstance(caught.value.__cause__, openai.BadRequestError)


async def test_a11_a_service_of_theirs_that_is_down_is_not_our_proxy() -> None:
    async def play(client: Any, data: Any) -> float:
        await ask(client)
        async with httpx.AsyncClient() as http:
            await http.get("http://127.0.0.1:1/")
        return 1.0

    async with stage(play) as at:
        with pytest.raises(WorkflowFault, match="ConnectError"):
            await at.runner.run(REQUEST)


async def test_a11_an_error_of_ours_that_a_framework_wraps_is_ours() -> None:
    async def play(client: Any, data: Any) -> float:
        await ask(client)
        try:
            raise InfrastructureFault("user", "timeout") if not at.runner.faults else ScoreDisagreement("0 or 1")
        except Tau2LightningError as error:
            raise RuntimeError("a tool has failed") from error

    async with stage(play, retries=1) as at:
        with pytest.raises(ScoreDisagreement):
            await at.runner.run(REQUEST)
        assert at.runner.faults == {"user:timeout": 1}
