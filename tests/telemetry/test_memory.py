"""Peak memory counts this process and its children, and keeps the largest sample."""

from __future__ import annotations

import subprocess
import sys

from tau2_lightning.telemetry.memory import PeakMemory, tree_bytes

CHILD = "import sys; block = bytearray(b'x' * (120 << 20)); print('ready', flush=True); sys.stdin.read()"


def test_the_peak_holds_what_a_child_took_and_gave_back():
    before = tree_bytes()
    with PeakMemory(every=3600.0) as memory:
        start = memory.peak
        with subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n"
            memory.sample()
            child.stdin.close()  # type: ignore[union-attr]
        memory.sample()
    assert abs(start - before) < 100 << 20
    assert memory.peak > start + (100 << 20)
    assert tree_bytes() < memory.peak - (100 << 20)


def test_the_thread_samples_by_itself():
    with PeakMemory(every=0.01) as memory:
        memory.peak = 0
        for _ in range(500):
            if memory.peak:
                break
            memory._done.wait(0.02)
    assert memory.peak > 1 << 20
