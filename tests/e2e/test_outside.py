"""Agents of others: one that ``_target_`` names, and programs that connect to the run (``rollout.mode=online``)."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path

import httpx
import openai
import pytest
import torch

from tau2_lightning import train
from tests.e2e.test_main_job import metrics, run_folder, weights, words  # noqa: F401
from tests.e2e.their_agent import talk

pytestmark = pytest.mark.e2e

ONE_STEP = [
    "trainer.max_epochs=1", "train_dataset.batch_size=2", "gconfig.n_samples=4",
    "trainer.validate_before=false", "trainer.validate_after=false",
]  # fmt: skip


def moved(before: Path, after: Path) -> bool:
    old, new = weights(before), weights(after)
    return any(not torch.equal(old[name], new[name]) for name in old)


def step_of(folder: Path) -> dict[str, str]:
    (step,) = [row for row in metrics(folder) if row.get("loss/mean")]
    return step


def test_somebody_elses_agent_is_trained_by_its_name(words, reference):  # noqa: F811
    more = ["rollout.workflow={_target_: tests.e2e.their_agent.SpellingAgent, turns: 3}"]
    name = ["experiment_name=outside", "trial_name=workflow", f"actor.path={reference.folders['A']}"]
    assert train.main([*words, *ONE_STEP, *more, *name]) == 0
    folder = run_folder(words, "outside", "workflow")
    assert moved(reference.folders["A"], folder / "policy")
    step = step_of(folder)
    assert float(step["optim/grad_norm"]) > 0 and abs(float(step["ratio/max"]) - 1) < 1e-4


class Outsider(threading.Thread):
    """A program beside the run. It finds the proxy by the file in the run's folder and plays until it is
    stopped."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.file, self.stopped, self.groups, self.failure = folder / "proxy.json", threading.Event(), 0, ""
        self.mode = 0

    def run(self) -> None:
        deadline = time.monotonic() + 240
        while not self.file.is_file() or not self.file.read_text():
            if time.monotonic() > deadline or self.stopped.wait(0.1):
                return
        self.mode = self.file.stat().st_mode & 0o777
        asyncio.run(self.play(json.loads(self.file.read_text())))

    async def play(self, where: dict[str, str]) -> None:
        admin = {"Authorization": f"Bearer {where['admin_key']}"}
        root = where["base_url"].removesuffix("/v1")
        async with httpx.AsyncClient(base_url=root, headers=admin, timeout=60) as http:
            # A group that never fills and a session without a reward: neither is trained on or waited for.
            await self.session(http, where["base_url"], "lonely", 1.0)
            await self.session(http, where["base_url"], "g0", None)
            while not self.stopped.is_set() and self.groups < 2:
                work = (self.session(http, where["base_url"], f"g{self.groups}", float(n % 2)) for n in range(4))
                await asyncio.gather(*work)
                self.groups += 1

    async def session(self, http: httpx.AsyncClient, base_url: str, group: str, reward: float | None) -> None:
        started = (await http.post("/sessions", json={"task_id": "spelling", "group_id": group})).json()
        async with openai.AsyncOpenAI(base_url=base_url, api_key=started["api_key"], max_retries=0) as client:
            await talk(client, group)
        answer = await http.post(
            f"/sessions/{started['session_id']}/end",
            json={} if reward is None else {"reward": reward},
            headers={"Authorization": f"Bearer {started['api_key']}"},
        )
        assert answer.status_code == 200, answer.text


def test_programs_from_outside_are_trained_on(words, reference):  # noqa: F811
    folder = run_folder(words, "outside", "online")
    outsider = Outsider(folder)
    outsider.start()
    name = ["experiment_name=outside", "trial_name=online", f"actor.path={reference.folders['A']}"]
    try:
        assert train.main([*words, *ONE_STEP, "rollout.mode=online", *name]) == 0
    finally:
        outsider.stopped.set()
        outsider.join(30)
    assert outsider.groups == 2 and outsider.mode == 0o600
    assert moved(reference.folders["A"], folder / "policy")
    step = step_of(folder)
    assert float(step["optim/grad_norm"]) > 0 and abs(float(step["ratio/max"]) - 1) < 1e-4
    assert not (folder / "proxy.json").exists()  # the file with the key is removed at the end
