"""A fake vLLM as a process of its own: ``python -m tests.rollout.engine.fake_server PORT [SECONDS]``.

With SECONDS, every answer to a generate request takes so long.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from tests.rollout.engine.fake_vllm import FakeVLLM


async def main(port: int, seconds: float = 0.0) -> None:
    async def slow(request: Any, body: Any) -> None:
        await asyncio.sleep(seconds)

    server = FakeVLLM()
    server.behave["/inference/v1/generate"] = slow
    await server.start(port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), *map(float, sys.argv[2:])))
