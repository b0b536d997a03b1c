"""Starts the other ranks of this machine as Lightning does, and says which one ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

POLL_SECONDS = 0.5
Ended = Callable[[int, int], None]


class RankLauncher(_SubprocessScriptLauncher):
    """Lightning's launcher without its observer. That one kills this process without a word, five seconds after a rank
    has failed, so that nobody learns which rank it was, and this process's exit code is that of a kill.

    ``ended`` is called in a thread with the first rank that fails and its exit code. By default the line on the screen
    and exit code 1 follow at once: nothing is being trained yet.
    """

    procs: list[subprocess.Popen[bytes]]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ended: Ended = self._leave

    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other ranks once, then call ``function`` in this one."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=self._observe, args=(self.procs,), name="ranks", daemon=True).start()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def end_ranks(self) -> None:
        """Kill the other ranks: one that waits in a collective hears nothing else."""
        for process in self.procs:
            with suppress(OSError):
                process.send_signal(signal.SIGKILL)

    def _observe(self, processes: list[subprocess.Popen[bytes]]) -> None:
        while True:
            codes = [process.poll() for process in processes]  # of all: returncode is unknown before it is asked for
            for rank, code in enumerate(codes, start=1):
                if code:
                    return self.ended(rank, code)
            if None not in codes:
                return None
            time.sleep(POLL_SECONDS)

    def _leave(self, rank: int, code: int) -> None:
        print(f"error: rank {rank} {ended_in_words(code)} before training began", file=sys.stderr, flush=True)
        self.end_ranks()
        os._exit(1)


def ended_in_words(code: int) -> str:
    """How a process with the exit code ``code`` of Popen ended."""
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
