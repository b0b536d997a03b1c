"""Starts an SGLang server whose routes need a key: ``python launch.py FLAGS...``, by SGLang's own interpreter.

SGLang's ``--api-key`` would show the key in the list of processes and in the log, so the key comes in a variable of the
environment and is checked by the middleware that guards vLLM's routes (`in_vllm.auth`). SGLang starts its other
processes by running this file again under another name, so what they need is done at import.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any


def shared(name: str) -> Any:
    """Module ``name`` of ``in_vllm``, which needs nothing of this project."""
    if "in_vllm" not in sys.modules:
        folder = Path(__file__).parents[1] / "in_vllm"
        spec = importlib.util.spec_from_file_location(
            "in_vllm", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        sys.modules["in_vllm"] = importlib.util.module_from_spec(spec)
    return importlib.import_module(f"in_vllm.{name}")  # noqa: TID251  # there it has no other name


def middleware() -> list[Any]:
    """The classes of this project's middleware, the outermost last."""
    return [shared("cpu_seconds").CpuSeconds, shared("auth").RequireKey]


def main() -> None:
    """Serve until a signal ends this process."""
    from sglang.launch_server import run_server
    from sglang.srt.entrypoints import http_server
    from sglang.srt.server_args import prepare_server_args

    for each in middleware():
        http_server.app.add_middleware(each)
    run_server(prepare_server_args(sys.argv[1:]))


if __name__ in ("__main__", "__mp_main__"):
    shared("stacks").answer_with_stacks()
    if os.environ.get("SGLANG_USE_CPU_ENGINE") == "1":
        import without_kernels  # beside this file, which is no part of a package here

        without_kernels.install(adapters="--enable-lora" in sys.argv)

if __name__ == "__main__":
    main()
