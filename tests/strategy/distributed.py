"""Run a small gloo job inside a test: its ranks are forked from the process of tests/fork_server.py."""

from __future__ import annotations

import io
import logging
import os
import queue
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import cloudpickle
import torch
import torch.distributed as dist

from tau2_lightning.launch.net import free_port
from tests.fork_server import fork_server


def fork(world: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
    """Run ``function(*args)`` on ``world`` gloo ranks and return the ranks' results in order.

    The function and its arguments travel by cloudpickle, so it may be a closure; what else a test has changed in its
    process, except environment variables, does not reach the ranks. Raises RuntimeError with the first rank's
    traceback, or TimeoutError naming the ranks that did not answer.
    """
    context = fork_server()
    results: Any = context.Queue()
    work = cloudpickle.dumps((function, args, dict(os.environ)))
    port = free_port("127.0.0.1")
    ranks = [
        context.Process(target=_run, args=(rank, world, port, work, results), daemon=True) for rank in range(world)
    ]
    for process in ranks:
        process.start()
    answers: dict[int, Any] = {}
    failure = ""
    deadline = time.monotonic() + timeout
    try:
        while len(answers) < world and time.monotonic() < deadline and not failure:
            try:
                rank, good, value = results.get(timeout=0.5)
            except queue.Empty:
                failure = _ended([each for index, each in enumerate(ranks) if index not in answers])
                continue
            answers[rank] = torch.load(io.BytesIO(value), weights_only=False) if good else value
            failure = "" if good else f"rank {rank}:\n{value}"
    finally:
        for process in ranks:
            process.join(0.1 if failure else 3.0)
            if process.is_alive():
                process.kill()
                process.join()
    if failure:
        raise RuntimeError(failure)
    if len(answers) < world:
        raise TimeoutError(f"ranks {sorted(set(range(world)) - set(answers))} did not answer within {timeout:g} s")
    return [answers[rank] for rank in range(world)]


def _ended(waiting: list[Any]) -> str:
    """The first of these ranks that a signal ended: it will never answer."""
    for process in waiting:
        if process.exitcode is not None and process.exitcode < 0:
            return f"{process.name}: ended by signal {-process.exitcode}"
    return ""


def _run(rank: int, world: int, port: int, work: bytes, results: Any) -> None:
    try:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        logging.disable(logging.ERROR)
        function, args, environment = cloudpickle.loads(work)
        os.environ.update(environment)
        if world > 1:
            dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
        answer = io.BytesIO()
        # As bytes, because tensors in shared memory would be lost when the rank ends; classes of a script go along.
        torch.save(function(*args), answer, pickle_module=cloudpickle)
        results.put((rank, True, answer.getvalue()))
        results.close()
        results.join_thread()
        if world > 1:
            dist.barrier()
    except BaseException:  # noqa: BLE001  the parent re-raises what happened here
        results.put((rank, False, traceback.format_exc()))
        results.close()
        results.join_thread()
        time.sleep(0.5)
        os._exit(1)
    os._exit(0)
