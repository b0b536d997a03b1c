"""The interpreter of the environment that SGLang has to itself."""

from __future__ import annotations

import os
from pathlib import Path

from tau2_lightning.errors import Violation


def check_python(python: str) -> Violation | None:
    """Why ``rollout.engine_python`` cannot start SGLang on this machine; None if it may."""
    key = "rollout.engine_python"
    remedy = "Name the interpreter of an environment with SGLang in it (docs/engines.md)"
    if not python:
        problem = "SGLang has an environment of its own, and no interpreter is named"
        return Violation(key, None, problem, f"{remedy}, or write vllm: in allocation_mode for vLLM")
    if not os.access(python, os.X_OK) or Path(python).is_dir():
        return Violation(key, python, "is no program on this machine", remedy)
    return None
