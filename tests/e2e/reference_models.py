"""Two tiny policies and their log-probs in transformers: the oracle of the engine's tests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch

from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.rollout.engine.settings import EngineSettings

MAX_MODEL_LEN = 4096
VOCABULARY = 256  # token ids below this exist in the tiny policy

#: The engine of these tests: SGLang where its interpreter is named (`make test-sglang`), else vLLM.
PYTHON = os.environ.get("SGLANG_PYTHON", "")
ENGINE = "sglang" if PYTHON else "vllm"


class ReferenceModels:
    """Policies "A" (what the engine starts with) and "B", of one architecture, and their log-probs in transformers."""

    def __init__(self, folder: Path) -> None:
        from transformers import Qwen3ForCausalLM

        texts = ["Phones, plans and bills: the quick brown fox checks the line status. " * 20]
        self.folders = {
            name: build_tiny_policy(
                folder / name, texts, seed=seed, vocab_size=2 * VOCABULARY, max_position_embeddings=MAX_MODEL_LEN
            )
            for seed, name in enumerate("AB")
        }
        self.models = {}
        for name, path in self.folders.items():
            model = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim == 2:
                        parameter.mul_(4.0)  # sharper than an untrained model, so that the two disagree clearly
            model.save_pretrained(path)
            self.models[name] = model

    def weights(self, name: str) -> list[tuple[str, torch.Tensor]]:
        """Full tensors under Hugging Face names; the tied head is the embedding and not listed."""
        return [(key, parameter.detach()) for key, parameter in self.models[name].named_parameters()]

    def buckets(self, name: str) -> list[list[tuple[str, torch.Tensor]]]:
        """The weights as a trainer's strategy gives them, here in one bucket."""
        return [self.weights(name)]

    @torch.no_grad()
    def logprobs(self, name: str, row: Sequence[int], temperature: float = 1.0) -> list[float]:
        """Log-prob of each token after the first, from a transformers forward in float32."""
        ids = torch.tensor([list(row)])
        logits = self.models[name](ids).logits[0, :-1].double() / temperature
        return torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0].tolist()


def engine_settings(reference: ReferenceModels, log_path: Path, **changes: object) -> EngineSettings:
    """Settings of a float32 engine that serves policy A."""
    base: dict[str, object] = {"backend": ENGINE, "python": PYTHON}
    base |= {"model_path": str(reference.folders["A"]), "dtype": "float32", "max_model_len": MAX_MODEL_LEN}
    return EngineSettings(**{**base, "kv_cache_gib": 0.25, "log_path": log_path, **changes})  # type: ignore[arg-type]
