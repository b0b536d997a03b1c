"""What a soak puts into a run: an agent whose episodes fail on demand, and a callback that injects faults and measures.

The callback writes a line into ``soak.jsonl`` of the run's folder after every batch, and ``soak.json`` at the end.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import psutil

from tau2_lightning.callbacks.seams import data_of, module_of
from tau2_lightning.environment import EnvironmentSettings, UserSettings
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.module import GRPOModule
from tau2_lightning.rollout.episode.tau2 import Tau2Workflow
from tau2_lightning.rollout_files.played import Played, PlayedBatch

SETTINGS = EnvironmentSettings("mock", max_steps=6, policy="none", user=UserSettings("scripted"))
#: What befalls the next episodes: "raise" or "hang".
BEFALLS: deque[str] = deque()


class SoakAgent(Tau2Workflow):
    """Plays mock tasks. The reward is the parity of what the agent said: an untrained policy solves nothing, and tau2's
    reward would give no signal."""

    def __init__(self) -> None:
        super().__init__(SETTINGS, {"temperature": 1.0})

    async def run(self, data: Mapping[str, Any], **connection: Any) -> dict[str, Any]:
        what = BEFALLS.popleft() if BEFALLS else ""
        if what == "raise":
            raise RuntimeError("a defect of the agent")
        if what == "hang":
            await asyncio.sleep(3600)
        result = await super().run(data, **connection)
        said = [m["content"] or "" for m in result["outcome"].simulation["messages"] if m["role"] == "assistant"]
        return result | {"reward": float(sum(map(ord, "".join(said))) % 2)}


class Soak(L.Callback):
    """A fault about every ``every`` batches, drawn with ``seed``; after every batch what the processes hold.

    Every kind of fault has come once before one comes again.
    """

    def __init__(self, folder: RunFolder, seed: int, every: int) -> None:
        self.folder, self._random, self._every = folder, random.Random(seed), every
        self.counts: Counter[str] = Counter()
        self.injected: Counter[str] = Counter()
        self._left: list[Callable[[], None]] = []
        self._next = self._interval()
        self._nan_at = -1
        self._began = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data_of(trainer).rollouts.played.append(self._count)
        loss, here = GRPOModule._loss, self

        def lossy(module: GRPOModule, outputs: Any, microbatch: Any) -> Any:
            found, metrics = loss(module, outputs, microbatch)
            return (found * float("nan") if module.weights_version == here._nan_at else found), metrics

        GRPOModule._loss = lossy  # type: ignore[method-assign,assignment]

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        version = module_of(pl_module).weights_version
        self._measure(version)
        if version < self._next:
            return
        self._next = version + self._interval()
        if not self._left:
            self._left = self._kinds()
            self._random.shuffle(self._left)
        self._version = version
        fault = self._left.pop()
        self.injected[fault.__name__.strip("_")] += 1
        fault()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where every episode is, before those in flight are ended."""
        service = data_of(trainer).rollouts.running

        def account(_: object) -> dict[str, int]:
            ahead: Any = service._ahead
            scheduler, n = ahead._scheduler, ahead.plan.n_samples
            self.counts["filtered"] += sum(len(group.rollouts) for group in (*ahead._dropped, *ahead._lost))
            self.counts["excluded"] += ahead._excluded.total()
            in_flight = n * (scheduler.running + len(ahead._ready))
            return {"collected": n * scheduler.counters["admitted"], "in_flight": in_flight}

        counts = service.while_collecting(account)
        batches = module_of(pl_module).weights_version
        found = {**self.counts, **counts, "batches": batches, "injected": dict(self.injected)}
        (self.folder.root / "soak.json").write_text(json.dumps(found))

    def _count(self, played: Played) -> None:
        """Add a batch to the accounts."""
        if not isinstance(played, PlayedBatch):
            return
        collection, counts = played.collection, self.counts
        counts["trained"] += sum(len(group.rollouts) for group in collection.groups)
        counts["filtered"] += sum(len(group.rollouts) for group in (*collection.dropped, *collection.lost_groups))
        counts["excluded"] += collection.excluded.total()
        counts["stale"] += collection.queue.dropped

    def _measure(self, batches: int) -> None:
        mine, root = psutil.Process(), self.folder.root
        below = [one for one in mine.children(recursive=True) if _is_engine(one)]
        line = {
            "batch": batches,
            "seconds": time.monotonic() - self._began,
            "memory": mine.memory_info().rss,
            "descriptors": mine.num_fds(),
            "threads": mine.num_threads(),
            "engine_memory": sum(_of(one, lambda process: process.memory_info().rss) for one in below),
            "engine_descriptors": sum(_of(one, psutil.Process.num_fds) for one in below),
            "engine_threads": sum(_of(one, psutil.Process.num_threads) for one in below),
            "disk": sum(_size(root / name) for name in ("checkpoints", "rollouts", "policy", "adapter", "exports")),
            "record": sum(_size(root / name) for name in ("metrics", "logs", "stuck", "results")),
        }
        with (root / "soak.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _interval(self) -> int:
        return self._random.randint(self._every * 2 // 3, self._every * 4 // 3)

    # -- faults that a run survives -----------------------------------------------------------------------------------

    def _kinds(self) -> list[Callable[[], None]]:
        return [
            self._engine_core_killed, self._engine_server_killed, self._engine_stopped, self._run_stopped,
            self._nan_gradient, self._clock_step, self._agent_raises, self._agent_hangs, self._second_run,
        ]  # fmt: skip

    def _engine_core_killed(self) -> None:
        self._send(signal.SIGKILL, "EngineCore")

    def _engine_server_killed(self) -> None:
        self._send(signal.SIGKILL, "vllm.entrypoints")

    def _engine_stopped(self) -> None:
        stopped = self._send(signal.SIGSTOP, "EngineCore")
        threading.Timer(4.0, lambda: [_of(one, psutil.Process.resume) for one in stopped]).start()

    def _run_stopped(self) -> None:
        subprocess.Popen(["/bin/sh", "-c", f"sleep 4; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)

    def _nan_gradient(self) -> None:
        self._nan_at = self._version

    def _clock_step(self) -> None:
        right, moved = time.time, self._random.choice([-86_400.0, 7 * 86_400.0])
        time.time = lambda: right() + moved
        threading.Timer(5.0, lambda: setattr(time, "time", right)).start()

    def _agent_raises(self) -> None:
        BEFALLS.extend(["raise"] * 2)

    def _agent_hangs(self) -> None:
        BEFALLS.append("hang")

    def _second_run(self) -> None:
        """The command of this run once more; it must be refused."""
        log = (self.folder.logs / "second_run.log").open("w")
        subprocess.Popen([sys.executable, "-m", "tau2_lightning.train", *sys.argv[1:]], stdout=log, stderr=log)
        log.close()

    def _send(self, number: signal.Signals, name: str) -> list[psutil.Process]:
        found = [one for one in psutil.Process().children(recursive=True) if name in _named(one)]
        found = [one for one in found if "watchdog" not in _named(one)]
        for one in found:
            one.send_signal(number)
        return found


def _is_engine(process: psutil.Process) -> bool:
    return any(name in _named(process) for name in ("vllm", "VLLM"))


def _named(process: psutil.Process) -> str:
    return str(_of(process, lambda one: " ".join(one.cmdline()))) or ""


def _of(process: psutil.Process, read: Callable[[psutil.Process], Any]) -> Any:
    """What ``read`` says of a process, 0 where it has just ended."""
    try:
        return read(process)
    except psutil.Error:
        return 0


def _size(folder: Path) -> int:
    """Bytes of the files below ``folder``; files that vanish meanwhile do not count."""
    total = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total
