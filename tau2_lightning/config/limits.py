"""Limits of the engine that configuration rules ask for before the engine is imported."""

from __future__ import annotations

# The ranks vLLM 0.32 can be started with.
ENGINE_LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
