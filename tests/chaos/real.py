"""Faults of runs with a real engine: the smallest run on tau2's mock domain, with a tiny random policy."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.e2e.launch_words import small_run
from tests.e2e.reference_models import ReferenceModels

from .faults import BATCH, EVERY, INTERRUPTED, KILLED, STEPS, TERMINATED, Fault, kill
from .runs import START_SECONDS, Run

SAME = ("trial_name=t", "experiment_name=e")
SLOW_SECONDS = 20.0


def with_engine(root: Path) -> Run:
    """The main job in ``root`` with an engine of its own."""
    reference = ReferenceModels(root / "policies")
    command = ["-m", "tau2_lightning.train", *small_run(reference, root, epochs=1)]
    command += [*SAME, f"cache_dir={root / 'cache'}", "trainer.limit_val_batches=0"]
    command += [f"train_dataset.batches_per_epoch={STEPS}"]
    return Run(command, command, root)


def engine(number: signal.Signals, *, core: bool = True) -> Callable[[Run], None]:
    """Send the engine's core (or its API server) a signal while the run is in the phase, and let it go on."""

    def do(run: Run) -> None:
        for process in _engine_processes(run.pid, core=core):
            process.send_signal(number)
        run.go_on()

    return do


def slow_engine(run: Run) -> None:
    """Let the engine's core run for a tenth of each second only, as beside a neighbour that takes the processor."""
    cores = _engine_processes(run.pid, core=True)
    run.go_on()
    ends = time.monotonic() + SLOW_SECONDS
    with suppress(psutil.NoSuchProcess):
        while time.monotonic() < ends:
            for core in cores:
                core.suspend()
            time.sleep(0.9)
            for core in cores:
                core.resume()
            time.sleep(0.1)


def starting_engine(number: signal.Signals) -> Callable[[Run], None]:
    """Send the API server of the engine a signal a second after its start."""

    def do(run: Run) -> None:
        _new_server(run, ()).send_signal(number)

    return do


def run_with_starting_engine(number: signal.Signals) -> Callable[[Run], None]:
    """Send the run a signal a second after the start of its engine."""

    def do(run: Run) -> None:
        _new_server(run, ())
        run.send(number)

    return do


def killed_as_it_restarts(run: Run) -> None:
    """Kill the engine's API server, and the next one while it starts."""
    (server,) = _engine_processes(run.pid, core=False)
    server.kill()
    _new_server(run, (server.pid,)).kill()
    run.go_on()


def _new_server(run: Run, known: tuple[int, ...]) -> psutil.Process:
    """The API server that appears and is none of ``known``, a second after its start."""
    ends = time.monotonic() + START_SECONDS
    while True:
        for server in _servers(run.pid):
            if server.pid not in known:
                time.sleep(1.0)
                run.look_below()
                return server
        assert time.monotonic() < ends, "no engine is started"
        time.sleep(0.05)


def _servers(pid: int) -> list[psutil.Process]:
    below = psutil.Process(pid).children(recursive=True)
    return [one for one in below if "vllm.entrypoints" in _named(one) and "watchdog" not in _named(one)]


def _engine_processes(pid: int, *, core: bool) -> list[psutil.Process]:
    servers = _servers(pid)
    found = [child for server in servers for child in server.children()] if core else servers
    assert found, [_named(one) for one in psutil.Process(pid).children(recursive=True)]
    return found


def _named(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def agent(name: str, how: str) -> tuple[str, ...]:
    """Words for an agent of `agents`."""
    return (f"+rollout.workflow._target_=tests.chaos.agents.{name}", f"+rollout.workflow.how={how}")


FAILED = "dispatcher/attempts_failed"
SHORT_EPISODES = "rollout.episode_timeout=6"
REAL_FAULTS = (
    Fault("engine core killed", "rollout", "rollout:3", engine(signal.SIGKILL), real=True),
    Fault("engine server killed", "rollout", "rollout:3", engine(signal.SIGKILL, core=False), real=True),
    Fault("engine killed again as it restarts", "rollout", "rollout:3", killed_as_it_restarts, real=True),
    Fault("engine killed as it starts", "engine start", do=starting_engine(signal.SIGKILL), code=1,
          says="engine 0 died while starting", real=True),
    Fault("engine core stopped", "rollout", "rollout:3", engine(signal.SIGSTOP), real=True),
    Fault("engine slow", "generate", "rollout:3", slow_engine, real=True),
    Fault("engine core killed", "weight sync", "weight sync:3", engine(signal.SIGKILL), real=True),
    Fault("engine core stopped", "weight sync", "weight sync:3", engine(signal.SIGSTOP),
          words=("rollout.weight_sync.timeout=20",), real=True),
    Fault("kill -9, with engine", "rollout", "rollout:3", kill(signal.SIGKILL), words=(EVERY,), code=KILLED,
          loses=BATCH, real=True),
    Fault("SIGTERM, with engine", "rollout", "rollout:3", kill(signal.SIGTERM), code=TERMINATED, loses=BATCH,
          real=True),
    Fault("SIGTERM, with engine", "engine start", do=run_with_starting_engine(signal.SIGTERM),
          code=TERMINATED, real=True),
    Fault("Ctrl-C, with engine", "rollout", "rollout:3", kill(signal.SIGINT), code=INTERRUPTED, loses=BATCH, real=True),
    Fault("agent hangs", "rollout", words=(*agent("Afflicted", "hang"), SHORT_EPISODES), counted=FAILED, real=True,
          loses="nothing: it is played again"),
    Fault("tool blocks the loop for 8 s", "environment", words=(*agent("Afflicted", "block"), SHORT_EPISODES),
          counted=FAILED, real=True, loses="nothing: episodes that became late are played again"),
    Fault("user answers with a page of HTML", "user", words=agent("WithUser", "html"), counted=FAILED, real=True,
          loses="nothing: episodes are played again"),
    Fault("user hangs", "user", words=agent("WithUser", "hang"), counted=FAILED, real=True,
          loses="nothing: episodes are played again"),
)  # fmt: skip
