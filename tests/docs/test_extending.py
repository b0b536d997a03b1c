"""The examples of docs/extending/: the domain is played, the algorithms train, the agent and the engine answer."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import torch

from tau2_lightning.algorithm import GRPO, finalise
from tau2_lightning.batch.batch import Batch
from tau2_lightning.environment import describe_domain, load_tasks
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.rollout.episode.runner import EpisodeRunner
from tau2_lightning.rollout.episode.workflow import load_workflow
from tau2_lightning.rollout.proxy.access import episode_access
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tests.batch.groups import loss_of, random_groups
from tests.cases.foreign import REQUEST
from tests.environment.helpers import calls, play, says, scripted, solo
from tests.rollout.proxy.rig import Rig

from .pages import examples


def module(name: str, page: str) -> ModuleType:
    """A module made of the examples of a page, under ``name`` as ``import`` finds it."""
    made = sys.modules[name] = ModuleType(name)
    # As printed: without the future import of this file. Our own text.
    exec(compile("\n".join(examples(page)), page, "exec", dont_inherit=True), made.__dict__)
    return made


# ------------------------------------------------------------------------------------------------------- a domain


@pytest.fixture(scope="module")
def lights() -> Iterator[str]:
    module("lights", "docs/extending/domain.md")
    yield "lights"
    for known in (api.registry._domains, api.registry._tasks, api.registry._task_splits):
        known.pop("lights", None)


def test_the_domain_is_described(lights: str) -> None:
    info = describe_domain(lights)
    assert info.has_solo and {"look", "switch"} <= set(info.tools)
    assert (info.splits["train"], info.splits["test"]) == (2, 2)
    assert load_config([f"domain={lights}"]).econfig.solo_mode is True


async def test_the_domain_is_played_and_rewarded(lights: str) -> None:
    task = load_tasks(lights, "train", solo_mode=True)[0]
    on, done = calls(("switch", {"room": "kitchen", "on": True})), calls(("done", {}))
    solved = await play(task, solo(lights), [calls(("look", {"room": "kitchen"})), on, done])
    assert solved.outcome().reward == 1.0
    too_much = await play(task, solo(lights), [on, calls(("switch", {"room": "hall", "on": True})), done])
    assert too_much.outcome().reward == 0.0
    assert (await play(task, solo(lights), [done])).outcome().reward == 0.0


async def test_the_domain_is_played_with_a_user(lights: str) -> None:
    task = load_tasks(lights, "test")[0]
    on = calls(("switch", {"room": "bathroom", "on": True}))
    dialogue = await play(task, scripted(lights), [on, says("The light is on. Goodbye!")])
    assert dialogue.done and dialogue.outcome().reward == 1.0


# --------------------------------------------------------------------------------------------------- an algorithm


@pytest.fixture(scope="module")
def algorithms() -> ModuleType:
    return module("documented_algorithms", "docs/extending/algorithm.md")


def configured(algorithms: ModuleType, name: str, *words: str) -> Any:
    config = load_config([f"algorithm._target_={algorithms.__name__}.{name}", *words], check=False)
    return instantiate_algorithm(config)


def test_ranks_are_advantages(algorithms: ModuleType) -> None:
    ranked = configured(algorithms, "Ranked", "+algorithm.rank_scale=0.5")
    rewards = torch.tensor([0.0, 1.0, 1.0, 3.0, 5.0, 5.0], dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 0, 1, 1])
    found = ranked.advantages(rewards, groups, torch.ones(6, dtype=torch.int64))
    expected = [-1.0, 0.0, 0.0, 1.0, 0.0, 0.0]
    assert found.tolist() == pytest.approx([0.5 * value for value in expected])
    assert not ranked.teaches([5.0, 5.0], [3, 4]) and ranked.teaches([0.0, 1.0], [3, 3])


def test_the_loss_of_a_token_is_held(algorithms: ModuleType) -> None:
    unclipped = configured(algorithms, "Unclipped", "+algorithm.most=1.5")
    batch = Batch.from_groups(random_groups(3, 3, 4), unclipped, version=2)
    (mb,) = batch.microbatches(10_000)
    logprobs = (mb["behaviour_logprobs"] + 1.0).requires_grad_()  # a ratio of e
    loss, metrics = loss_of(unclipped, logprobs, torch.zeros_like(logprobs), mb)
    mask, n = mb["loss_mask"], mb["n_tokens"]
    assert float(loss) == pytest.approx(float((-1.5 * mb["advantages"] * mask).sum() / n), abs=1e-6)
    assert finalise({name: float(value) for name, value in metrics.items()})["clip_high"] == pytest.approx(1.0)
    plain, _ = loss_of(GRPO(), logprobs, torch.zeros_like(logprobs), mb)
    assert not math.isclose(float(loss), float(plain), abs_tol=1e-3)


def test_a_solved_episode_pays_for_its_tokens(algorithms: ModuleType) -> None:
    brisk = configured(algorithms, "Brisk", "+algorithm.price=0.01")
    raw, lengths = torch.tensor([1.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([10, 50, 90])
    shaped = brisk.shaped_rewards(raw, lengths, torch.zeros(3, dtype=torch.int64))
    assert shaped.tolist() == pytest.approx([0.9, 0.5, 0.0])


# ------------------------------------------------------------------------------------------------------- an agent


async def test_the_agent_earns_what_it_says() -> None:
    module("documented_agent", "docs/extending/agent.md")
    workflow = load_workflow({"_target_": "documented_agent.CountingAgent", "most": 2})
    async with (
        Rig(ProxySettings()) as rig,
        episode_access(rig.service, rig.server.base_url, over_http=True, timeout=20) as access,
    ):
        runner = EpisodeRunner(workflow, rig.store, access, timeout=20, retries=0)
        rig.engine.script += ["no idea", "1, of course"]
        solved = await runner.run(REQUEST)
        rig.engine.script += ["no idea", "none at all"]
        failed = await runner.run(REQUEST)
    assert solved.reward == pytest.approx(0.9) and failed.reward == pytest.approx(-0.2)
    # One row, because the history was appended to.
    assert [len(one.trajectories) for one in (solved, failed)] == [1, 1]
    assert [turn.reward for turn in failed.trajectories[0].turns] == pytest.approx([-0.1, -0.1])


# ------------------------------------------------------------------------------------------------------ an engine


async def test_the_engine_is_served_and_its_logprobs_are_the_models(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = module("documented_engine", "docs/extending/engine.md")
    folder = build_tiny_policy(tmp_path / "policy", ["check the line status. " * 30], vocab_size=512)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    engine, settings = made.PlainEngine(model, max_model_len=256), ProxySettings()
    server = made.proxy_of(folder, engine, settings)
    await server.start()
    try:
        async with httpx.AsyncClient(base_url=server.base_url.removesuffix("/v1"), timeout=60) as client:
            admin = {"Authorization": f"Bearer {settings.admin_key}"}
            session = (await client.post("/sessions", json={"task_id": "t", "group_id": "g"}, headers=admin)).json()
            own = {"Authorization": f"Bearer {session['api_key']}"}
            body = {"model": "policy", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8}
            answer = await client.post("/v1/chat/completions", json=body, headers=own)
            assert answer.status_code == 200, answer.text
            rows = (await client.get(f"/sessions/{session['session_id']}/export", headers=own)).json()
    finally:
        await server.stop()
    (row,) = rows["rows"]
    ids, mask = row["token_ids"], row["loss_mask"]
    scores = await engine.score(ids, deadline=10.0)
    sampled = [(row["logprobs"][t], scores[t - 1]) for t in range(1, len(ids)) if mask[t]]
    assert 1 <= len(sampled) <= 8
    assert all(mine == pytest.approx(theirs, abs=1e-4) for mine, theirs in sampled)
