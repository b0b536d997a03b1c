"""``python -m tau2_lightning.rollout.proxy`` with an engine of its own, and real clients that know only its base URL:
openai (sync, async, streaming), litellm, and tau2's command line. The last test kills it; no process may be left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from tests.e2e.test_main_job import policy, words  # noqa: F401  # a policy that has seen a few demonstrations

pytestmark = pytest.mark.e2e

START_SECONDS = 300.0
ASK: Any = {"model": "policy", "messages": [{"role": "user", "content": "My phone has no service."}], "max_tokens": 24}


def until(condition: Callable[[], Any], seconds: float) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


class Program:
    """The proxy as a program of its own."""

    def __init__(self, policy: Path, folder: Path) -> None:  # noqa: F811
        self.output, self.key, self.admin = folder / "proxy.log", "the-client-key", "the-admin-key"
        command = [
            sys.executable, "-m", "tau2_lightning.rollout.proxy", f"actor.path={policy}", "actor.dtype=float32",
            "gconfig.max_tokens=4096", "gconfig.max_new_tokens=120", "rollout.kv_cache_gib=0.25",
            "econfig.invalid_format_penalty=0.25", "econfig.turn_discount=0.5", "rollout.rate_limit=200",
        ]  # fmt: skip
        env = {**os.environ, "TAU2_LIGHTNING_CLIENT_KEY": self.key, "TAU2_LIGHTNING_ADMIN_KEY": self.admin}
        with self.output.open("wb") as log:
            self.process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env)

    @property
    def said(self) -> list[str]:
        return self.output.read_text().splitlines()

    @property
    def base_url(self) -> str:
        return next(line for line in self.said if line.startswith("OPENAI_BASE_URL=")).split("=", 1)[1]

    def family(self) -> list[psutil.Process]:
        """The program and everything it started: watchdog, API server, engine core."""
        return [self.process, *self.process.children(recursive=True)]


@pytest.fixture(scope="module")
def program(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:  # noqa: F811
    program = Program(policy, tmp_path_factory.mktemp("program"))
    try:
        ready = until(lambda: "ready" in program.said or program.process.poll() is not None, START_SECONDS)
        assert ready and program.process.is_running(), "\n".join(program.said[-20:])
        yield program
    finally:
        if program.process.poll() is None:
            program.process.terminate()
            program.process.wait(30)


def test_openai_sync(program: Program) -> None:
    client = openai.OpenAI(base_url=program.base_url, api_key=program.key, max_retries=0)
    whole = client.chat.completions.create(**ASK, temperature=0)
    stream = client.chat.completions.create(**ASK, temperature=0, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    said = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert said == (whole.choices[0].message.content or "")
    assert len(chunks) > 4 and chunks[-1].usage == whole.usage and whole.usage.completion_tokens <= 24
    assert client.models.list().data[0].id == "policy"


async def test_openai_async(program: Program) -> None:
    async with openai.AsyncOpenAI(base_url=program.base_url, api_key=program.key, max_retries=0) as client:
        whole = await client.chat.completions.create(**ASK, temperature=0)
        said = ""
        async for chunk in await client.chat.completions.create(**ASK, temperature=0, stream=True):
            said += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert said == (whole.choices[0].message.content or "")
        with pytest.raises(openai.BadRequestError) as too_long:
            await client.chat.completions.create(model="policy", messages=[{"role": "user", "content": "x " * 9000}])
        assert too_long.value.code == "context_length_exceeded"


def test_litellm(program: Program) -> None:
    import litellm

    where = {**ASK, "model": "openai/policy", "api_base": program.base_url, "api_key": program.key, "temperature": 0}
    whole = litellm.completion(**where, num_retries=0)
    stream = litellm.completion(**where, num_retries=0, stream=True)
    said = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert said == (whole.choices[0].message.content or "") and whole.usage.completion_tokens <= 24


def test_a_session_over_http_has_the_rewards_of_the_configuration(program: Program) -> None:
    root = program.base_url.removesuffix("/v1")
    with httpx.Client(base_url=root, headers={"Authorization": f"Bearer {program.admin}"}, timeout=60) as admin:
        started = admin.post("/sessions", json={"task_id": "t"}).json()
        client = openai.OpenAI(base_url=program.base_url, api_key=started["api_key"], max_retries=0)
        messages = list(ASK["messages"])
        for _ in range(2):
            messages.append(client.chat.completions.create(**{**ASK, "messages": messages}).choices[0].message)
            messages.append({"role": "user", "content": "And now?"})
        path = f"/sessions/{started['session_id']}"
        assert admin.post(f"{path}/end", json={"reward": 1.0}).json()["closed"]
        (row,) = admin.get(f"{path}/export").json()["rows"]
        assert [turn["discounted_return"] for turn in row["turns"]] == [0.5, 1.0]
        assert len(row["token_ids"]) == len(row["logprobs"]) and len(set(row["versions"])) == 2
        assert "proxy_sessions_total" in admin.get("/metrics").text


def test_tau2s_own_command_line(program: Program, tmp_path: Path) -> None:
    """tau2 plays telecom solo without changes: --agent-llm-args has the proxy's address, a variable has the key."""
    command = [
        str(Path(sys.executable).parent / "tau2"), "run", "--domain", "telecom", "--agent", "llm_agent_solo",
        "--user", "dummy_user", "--agent-llm", "openai/policy", "--agent-api-key", "OPENAI_API_KEY",
        "--agent-llm-args", json.dumps({"api_base": program.base_url}), "--task-split-name", "test", "--num-tasks", "1",
        "--max-steps", "6", "--results-dir", str(tmp_path), "--save-to", "cli",
    ]  # fmt: skip
    env = {**os.environ, "OPENAI_API_KEY": program.key, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    done = subprocess.run(
        command,
        env=env,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    saved = [json.loads(path.read_text()) for path in tmp_path.rglob("*.json")]
    (results,) = [found for found in saved if "simulations" in found]
    assert len(results["simulations"]) == 1
    calls = [
        call
        for simulation in results["simulations"]
        for message in simulation["messages"]
        if message["role"] == "assistant"
        for call in message.get("tool_calls") or ()
    ]
    assert calls and all(call["name"] and isinstance(call["arguments"], dict) for call in calls)


def test_kill_9_leaves_nothing(program: Program) -> None:
    family = program.family()
    assert len(family) >= 4, [process.name() for process in family]
    os.kill(program.process.pid, signal.SIGKILL)
    program.process.wait(10)
    gone = until(lambda: not [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE], 30)
    assert gone, [process for process in family if process.is_running()]
