"""C15: the proxy alone, ended by a signal, leaves nothing in the temporary directory."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from tests.programs import Forked
from tests.rollout.engine.fake_vllm import FakeVLLM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_c15_a_signal_leaves_no_folder_behind(number: int, policy: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    engine = await FakeVLLM().start()
    command = ["-m", "tau2_lightning.serve", "domain=mock", f"actor.path={policy}", "actor=tiny"]
    command += [f"rollout.engine_urls=[{engine.url}]", f"cache_dir={tmp_path}", f"output_dir={tmp_path}"]

    def serve() -> tuple[list[str], int, str]:
        with Forked(command, tmp_path / "screen.txt", variables={"TMPDIR": str(temporary)}) as process:
            process.until("\nready")
            made = [path.name for path in temporary.iterdir()]
            process.send_signal(number)
            return made, process.wait(), process.printed

    try:
        made, code, told = await asyncio.to_thread(serve)
    finally:
        await engine.stop()
    assert code == 0, told
    assert any(name.startswith("tau2-lightning-proxy-") for name in made), "the folder that has to go was there"
    assert list(temporary.iterdir()) == []
