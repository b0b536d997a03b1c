"""Loads one proxy with 256 sessions at once: no request may fail, none may wait much longer than its turn.

    python benchmarks/load.py            256 sessions for two minutes
    python benchmarks/load.py --full     for five minutes

Every session is a telecom dialogue of tau2 with a scripted user, whose agent asks over HTTP, as one in another process
does. When it ends, the next one begins. A real vLLM server answers, with a tiny policy. It works on `slots` requests at
a time, the others queue there. Each answer counts with the seconds that the agent waited for it; the first third of the
time is left out, because all sessions begin at once.

The last line is JSON: ``ratios`` and their ``aims``. ``failures``: requests and episodes that failed. ``p99 over
turn``: the 99th percentile over p50 x sessions / slots. ``memory grows``: of this process with the proxy, and of the
engine (`benchmarks/flat.py`), over five minutes, as a fraction.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import uvloop
from flat import WARM_UP, growth
from proxy_engine import DEADLINE, SETTINGS, Case

from tau2_lightning.environment import Dialogue, load_tasks
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.generation import Engine
from tau2_lightning.rollout.episode.client import PolicyClient
from tau2_lightning.rollout.episode.runner import EpisodeRequest, EpisodeRunner
from tau2_lightning.rollout.episode.seeds import derived_seed
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow

SESSIONS, SECONDS, SHORT_SECONDS = 256, 300.0, 120.0
MOST_WAIT, MOST_FRACTION = 3.0, 0.05


class TimedWorkflow(Tau2Workflow):
    """Keeps when each answer came and how long the agent waited for it, in ``waits``."""

    waits: list[tuple[float, float]]

    async def _complete(self, client: Any, dialogue: Dialogue, sampling: Mapping[str, Any]) -> dict[str, Any]:
        return await super()._complete(cast("PolicyClient", Timed(client, self.waits)), dialogue, sampling)


class Timed:
    """A client that keeps how long its answers took."""

    def __init__(self, client: PolicyClient, waits: list[tuple[float, float]]) -> None:
        self._client, self._waits = client, waits

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        began = time.perf_counter()
        answer = await self._client.complete(body)
        now = time.perf_counter()
        self._waits.append((now, now - began))
        return answer


async def load(case: Case, seconds: float) -> tuple[list[tuple[float, float]], Counter[str], list[dict[str, float]]]:
    """(waits, failures by cause, readings of memory) of `SESSIONS` sessions at once for ``seconds``."""
    await case.start_engine()
    await case.serve(cast("Engine", case.pool))
    workflow, failures = TimedWorkflow(SETTINGS, case.sampling), Counter[str]()
    object.__setattr__(workflow, "waits", [])
    runner = EpisodeRunner(workflow, case.store, case.http, timeout=10 * DEADLINE, retries=0, keep_failed=False)
    tasks, readings = load_tasks("telecom", "train"), list[dict[str, float]]()
    ends = time.perf_counter() + seconds

    async def sessions(place: int) -> None:
        number = place
        while time.perf_counter() < ends:
            task = tasks[number % len(tasks)]
            request = EpisodeRequest(task, task.task_id, str(number), 0, derived_seed(1, number), tools=case.tools)
            try:
                await runner.run(request)
            except InfrastructureFault as fault:
                failures[fault.name] += 1
            number += SESSIONS

    async def watch() -> None:
        mine = psutil.Process()
        while True:
            engines = mine.children(recursive=True)
            memory = {"memory": mine.memory_info().rss, "engine_memory": sum(one.memory_info().rss for one in engines)}
            readings.append({"seconds": time.perf_counter(), **memory})
            await asyncio.sleep(1.0)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(sessions(place) for place in range(SESSIONS)))
    watching.cancel()
    return workflow.waits, failures, readings


async def measure(seconds: float) -> tuple[dict[str, float], dict[str, str]]:
    """The ratios, and their aims."""
    with tempfile.TemporaryDirectory(prefix="tau2-lightning-load-") as folder:
        async with AsyncExitStack() as stack:
            case = Case(SESSIONS, SESSIONS, stack, Path(folder))
            slots = case.config.rollout.max_num_seqs
            began = time.perf_counter()
            waits, failures, readings = await load(case, seconds)
            # Sessions that are in the middle of a dialogue at the end complete it, with ever fewer beside them.
            last = waits[-1][0]
            first = last - seconds * (1 - WARM_UP)
    settled = np.array([wait for at, wait in waits if at > first])
    p50, p99 = np.percentile(settled, [50, 99])
    print(f"{len(waits)} answers in {last - began:.0f} s with the start of the engine; failures: {dict(failures)}")
    print(f"p50 {p50:.2f} s, p99 {p99:.2f} s, longest {settled.max():.2f} s; {SESSIONS} sessions, {slots} slots")
    ratios = {"failures": float(failures.total()), "p99 over turn": float(p99 / (p50 * SESSIONS / slots))}
    aims = {"failures": "0 exactly", "p99 over turn": f"<= {MOST_WAIT:g}"}
    for name in ("memory", "engine_memory"):
        seen = growth([each["seconds"] for each in readings], [each[name] for each in readings], SECONDS)
        print(seen.line(name, f"{SECONDS:g} s", in_bytes=True))
        ratios[f"{name} grows"], aims[f"{name} grows"] = seen.fraction, f"<= {MOST_FRACTION:g}"
    return {name: round(value, 3) for name, value in ratios.items()}, aims


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"{SECONDS:g} seconds instead of {SHORT_SECONDS:g}")
    options = parser.parse_args()
    ratios, aims = uvloop.run(measure(SECONDS if options.full else SHORT_SECONDS))
    print(json.dumps({"ratios": ratios, "aims": aims}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
