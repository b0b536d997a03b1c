"""C15: the proxy alone, ended by a signal, leaves nothing in the temporary directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.rollout.engine.fake_vllm import FakeVLLM

DEADLINE = 240.0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_c15_a_signal_leaves_no_folder_behind(number: int, policy: Path, tmp_path: Path) -> None:
    import asyncio

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    engine = await FakeVLLM().start()
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tau2_lightning.serve", "domain=mock", f"actor.path={policy}", "actor=tiny"]
    command += [f"rollout.engine_urls=[{engine.url}]", f"cache_dir={tmp_path}", f"output_dir={tmp_path}"]

    def serve() -> tuple[list[str], int, str]:
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as process:  # fmt: skip
            giving_up = threading.Timer(DEADLINE, process.kill)
            giving_up.start()
            assert process.stdout is not None
            if not any(line.startswith("ready") for line in process.stdout):
                return [], process.wait(), process.communicate()[1]
            made = [path.name for path in temporary.iterdir()]
            process.send_signal(number)
            told = process.communicate(timeout=DEADLINE)[1]
            giving_up.cancel()
            return made, process.returncode, told

    try:
        made, code, told = await asyncio.to_thread(serve)
    finally:
        await engine.stop()
    assert code == 0, told
    assert any(name.startswith("tau2-lightning-proxy-") for name in made), "the folder that has to go was there"
    assert list(temporary.iterdir()) == []
