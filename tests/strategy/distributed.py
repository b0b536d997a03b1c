"""Fork a small gloo job inside a test: cheap, because children inherit the imports."""

from __future__ import annotations

import io
import logging
import multiprocessing
import os
import queue
import time
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from tau2_lightning.launch.net import free_port


def fork(world: int, function: Callable[..., Any], *args: Any, timeout: float = 120.0) -> list[Any]:
    """Run ``function(*args)`` on ``world`` gloo ranks and return the ranks' results in order.

    Raises RuntimeError with the first child's traceback, or TimeoutError naming the ranks that did not answer.
    """
    context = multiprocessing.get_context("fork")
    results: Any = context.Queue()
    port = free_port("127.0.0.1")

    def child(rank: int) -> None:
        try:
            torch.set_num_threads(1)
            warnings.simplefilter("ignore")
            logging.disable(logging.ERROR)
            if world > 1:
                address = f"tcp://127.0.0.1:{port}"
                dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
            answer = io.BytesIO()
            torch.save(function(*args), answer)  # as bytes: tensors in shared memory would be lost when the child ends
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

    children = [context.Process(target=child, args=(rank,), daemon=True) for rank in range(world)]
    for process in children:
        process.start()
    answers: dict[int, Any] = {}
    failure = ""
    deadline = time.monotonic() + timeout
    try:
        while len(answers) < world and time.monotonic() < deadline and not failure:
            try:
                rank, good, value = results.get(timeout=0.5)
            except queue.Empty:
                continue
            answers[rank] = torch.load(io.BytesIO(value), weights_only=False) if good else value
            failure = "" if good else f"rank {rank}:\n{value}"
    finally:
        for process in children:
            process.join(0.1 if failure else 3.0)
            if process.is_alive():
                process.kill()
                process.join()
    if failure:
        raise RuntimeError(failure)
    if len(answers) < world:
        raise TimeoutError(f"ranks {sorted(set(range(world)) - set(answers))} did not answer within {timeout:g} s")
    return [answers[rank] for rank in range(world)]
