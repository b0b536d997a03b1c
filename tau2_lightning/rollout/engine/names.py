"""The engines by their names in ``allocation_mode``."""

from __future__ import annotations

VLLM, SGLANG = "vllm", "sglang"
