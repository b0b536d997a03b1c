"""Measures episodes per CPU second with an agent without latency: stock tau2 against this project, in one run.

Both play the same moves (the gold actions, one of them left out in every second episode), build their environments, run
tau2's orchestrator and score the episode. The program fails if rewards differ. Stock tau2 runs with Python's own
garbage collection, this project with the threshold that its blueprints set. Figures are CPU time of this process, so
other load changes them little. ``concurrent`` compares 32 episodes at once in one event loop with one at a time, in
short rounds, so that other load affects both alike.

    python benchmarks/environment.py [--seconds 60] [--concurrent 32]

The last line is JSON: ``ratios`` (ours over stock, and concurrent over single) and their ``aims``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from stock_tau2 import Move, play_stock

from tau2_lightning.environment import Dialogue, EnvironmentSettings, TaskRef, UserSettings, load_tasks
from tau2_lightning.environment.tasks import get_task

SCRIPTED = UserSettings("scripted")
CASES = {
    "airline": EnvironmentSettings("airline", user=SCRIPTED),
    "retail": EnvironmentSettings("retail", user=SCRIPTED),
    "telecom_solo": EnvironmentSettings("telecom", solo_mode=True),
}
AIMS = {"airline": 300.0, "retail": 200.0, "telecom_solo": 30.0}
CONCURRENT, ROUND = 32, 160
PYTHONS = gc.get_threshold()
Job = tuple[TaskRef, list[Move], list[dict[str, Any]]]


def jobs(settings: EnvironmentSettings, count: int) -> list[Job]:
    """Yield the gold moves of every task in turn; every second episode leaves out one gold action."""
    rng, tasks = random.Random(0), load_tasks(settings.domain, "base", solo_mode=settings.solo_mode)
    made = []
    for index in range(count):
        task = tasks[index % len(tasks)]
        criteria = get_task(task).evaluation_criteria
        actions = list(criteria.actions or [])
        if index % 2 and actions:
            actions.pop(rng.randrange(len(actions)))
        moves = [Move(calls=((action.name, action.arguments),)) for action in actions]
        facts = "; ".join(criteria.communicate_info or [])
        last = Move(calls=(("done", {}),)) if settings.solo_mode else Move(text=f"{facts}. Goodbye!")
        moves += [last, last]
        made.append((task, moves, [move.openai() for move in moves]))
    return made


def stock(settings: EnvironmentSettings, batch: Sequence[Job]) -> list[float]:
    rewards, kept = [], gc.get_threshold()
    gc.set_threshold(*PYTHONS)
    for task, moves, _ in batch:
        episode = play_stock(settings.domain, get_task(task), moves, solo_mode=settings.solo_mode)
        rewards.append(episode.reward_info().reward)
    gc.set_threshold(*kept)
    return rewards


async def _play(settings: EnvironmentSettings, job: Job) -> float:
    dialogue = Dialogue(job[0], settings, seed=1)
    await dialogue.start()
    for message in job[2]:
        if dialogue.done:
            break
        await asyncio.sleep(0)  # a real agent would make it wait here
        await dialogue.reply(message)
    return dialogue.outcome().reward


def ours(settings: EnvironmentSettings, batch: Sequence[Job], width: int = 1) -> list[float]:
    async def run() -> list[float]:
        gate = asyncio.Semaphore(width)

        async def one(job: Job) -> float:
            async with gate:
                return await _play(settings, job)

        return await asyncio.gather(*map(one, batch))

    return asyncio.run(run())


def rate(play: Callable[[Sequence[Job]], list[float]], batch: Sequence[Job]) -> tuple[float, list[float]]:
    """Return (episodes per CPU second, rewards)."""
    gc.collect()
    started = time.process_time()
    rewards = play(batch)
    return len(batch) / (time.process_time() - started), rewards


def measure(name: str, settings: EnvironmentSettings, seconds: float, concurrent: int = CONCURRENT) -> dict[str, float]:
    """Return median rates, and median ratios of rates within a round, which other load disturbs least.

    Half of the time goes to rounds of stock and ours, half to rounds of one and of ``concurrent`` at a time. These take
    turns in being first, because the second may find warmer caches or a slower clock.
    """
    size = {"airline": 2, "retail": 4, "telecom_solo": 20}[name]
    many = jobs(settings, ROUND)
    stock(settings, many[:1]), ours(settings, many)  # one-time work of both is not measured
    rates: dict[str, list[float]] = {"stock": [], "ours": [], "one": [], "concurrent": []}
    deadline, offset = time.monotonic() + seconds / 2, 0
    while time.monotonic() < deadline or len(rates["stock"]) < 3:
        few = [many[(offset + i) % len(many)] for i in range(size)]
        offset += size
        theirs = rate(lambda batch: stock(settings, batch), few)
        single = rate(lambda batch: ours(settings, batch), many)
        if theirs[1] != (check := ours(settings, few)):
            raise SystemExit(f"{name}: rewards differ: stock {theirs[1]}, ours {check}")
        rates["stock"].append(theirs[0])
        rates["ours"].append(single[0])
    deadline = time.monotonic() + seconds / 2
    while time.monotonic() < deadline or len(rates["one"]) < 6:
        widths = {"one": 1, "concurrent": concurrent}
        results = []
        for key in sorted(widths, reverse=len(rates["one"]) % 2 == 1):
            value, rewards = rate(partial(ours, settings, width=widths[key]), many)
            rates[key].append(value)
            results.append(rewards)
        if results[0] != results[1]:
            raise SystemExit(f"{name}: rewards differ between one and {concurrent} at a time")
    rates["speedup"] = [b / a for a, b in zip(rates["stock"], rates["ours"], strict=True)]
    rates["width"] = [b / a for a, b in zip(rates["one"], rates["concurrent"], strict=True)]
    low, _, high = statistics.quantiles(rates["width"], n=4)
    return {key: statistics.median(values) for key, values in rates.items()} | {"low": low, "high": high}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="time for each domain")
    parser.add_argument("--concurrent", type=int, default=CONCURRENT, help="episodes at once; the aim is for 32")
    arguments = parser.parse_args()
    ratios: dict[str, Any] = {}
    for name, settings in CASES.items():
        speed = measure(name, settings, arguments.seconds, arguments.concurrent)
        ratios[name] = round(speed["speedup"], 1)
        ratios[f"{name}_concurrent"] = round(speed["width"], 2)
        spread = f"(quartiles {speed['low']:.2f} to {speed['high']:.2f})"
        print(
            f"{name:13s} stock {speed['stock']:8.2f} ep/s   ours {speed['ours']:8.1f} ep/s   x{ratios[name]:.0f}   "
            f"{arguments.concurrent} at once x{ratios[f'{name}_concurrent']:.2f} {spread}",
            flush=True,
        )
    aims = AIMS | {f"{name}_concurrent": 1.0 for name in CASES}
    print(json.dumps({"ratios": ratios, "aims": aims}))


if __name__ == "__main__":
    main()
