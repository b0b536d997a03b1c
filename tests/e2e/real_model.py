"""SmolLM2-135M with its real weights in bfloat16: rows that it sampled, and the trainer's side of a comparison."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.forward import BatchForward
from tau2_lightning.microbatch import MicroBatch
from tau2_lightning.policy.gguf import is_made
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.guard_rows import PROMPT_TOKENS, GuardRows
from tau2_lightning.run.compose import load_config
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.lora import LoRASettings
from tau2_lightning.strategy.optimizer import adamw
from tau2_lightning.strategy.outputs import TokenOutputs

TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "get_order_details",
            "description": "Get the status and the items of an order.",
            "parameters": {
                "type": "object",
                "properties": {"order_id": {"type": "string", "description": "The order's id, such as '#W0000000'."}},
                "required": ["order_id"],
            },
        },
    }
]
QUESTIONS = (
    "Hello, where is my order #W2378156? It should have come on Monday.",
    "I want to return the keyboard and the thermostat of my last order. Which of them can I still return?",
    "Please explain in a few sentences how a refund to a gift card works, and how long it takes.",
    "My name is Yusuf Rossi and my zip code is 19122. Can you exchange the blue jacket for a red one?",
)
DEADLINE = 600.0


def smollm2() -> Path:
    """The policy's folder; skips the test where it was never made."""
    # REAL_MODEL: another folder with the same tokenizer, for a trial of the tests themselves.
    path = os.environ.get("REAL_MODEL") or load_config(["actor=smollm2", "mode=plan"], check=False).actor.path
    if path is None or not is_made(Path(path)):
        pytest.skip(f"{path} is missing: the first run with actor=smollm2 makes it (tau2-lightning[gguf], network)")
    return Path(path).absolute()


async def sampled_rows(pool: EnginePool, folder: Path, new_tokens: int, count: int = len(QUESTIONS)) -> list[GuardRows]:
    """One row for each question: the rendered prompt with a tool, and what the policy sampled after it."""
    form, rows = ChatFormat.from_pretrained(folder), []
    for number, question in enumerate(QUESTIONS[:count]):
        messages: list[Any] = [
            {"role": "system", "content": "You are a customer service agent of an online shop."},
            {"role": "user", "content": question},
        ]
        prompt = form.render(messages, TOOLS)
        sampling = SamplingParams(max_tokens=new_tokens, seed=number, ignore_eos=True)
        generation = await pool.generate(prompt, sampling, deadline=DEADLINE)
        tokens = [*prompt, *generation.token_ids]
        rows.append(GuardRows([tokens], [list(range(len(prompt) - PROMPT_TOKENS, len(tokens)))]))
    return rows


class RealTrainer:
    """The trainer's own computation of a real model in bfloat16, without episodes."""

    def __init__(self, folder: Path, *, lr: float, lora: LoRASettings | None = None, device: str = "cpu") -> None:
        self.compute = ArchonCompute(ParallelSpec.parse("d1"), Options(precision="bf16", lora=lora))
        self.compute.connect(torch.device(device))
        self.compute.parallelize(folder)
        trained = [parameter for parameter in self.compute.model.parameters() if parameter.requires_grad]
        self.optimizer = adamw(trained, lr=lr, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.01)
        c = self.compute
        alone: Any = SimpleNamespace(
            packs=c.packs, shares=c.shares, trunk_weight=c.trunk_weight, spec=c.spec,
            data_world=1, data_rank=0, root_device=c.mesh.device,
            sum_over_data=lambda values: values, token_outputs=c.token_outputs,
        )  # fmt: skip
        self._forward = BatchForward(alone, max_tokens_per_mb=8192)

    def logprobs(self, guard: GuardRows) -> list[list[float]]:
        """Log-probs of the compared tokens, as the module gives them to the parity guard."""
        return self._forward.token_logprobs(guard.rows, guard.positions)

    def step(self, guard: GuardRows, advantage: float) -> float:
        """One optimizer step of the policy gradient on the compared tokens; returns the gradient's norm."""
        from tau2_lightning.batch.plain_rows import scoring_batch

        def loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
            return -advantage * (outputs.logprobs * mb["loss_mask"]).sum() / mb["loss_mask"].sum(), {}

        self.optimizer.zero_grad()
        batch = scoring_batch(guard.rows, guard.positions)
        self.compute.forward_backward(batch.microbatches(8192, packed=self.compute.packs), loss)
        norm = self.compute.clip_grad_norm(1.0)
        self.optimizer.step()
        return float(norm)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the weights in bfloat16, as the engine holds them."""
        buckets = self.compute.iter_full_weights()
        return {name: tensor.to(torch.bfloat16, copy=True) for bucket in buckets for name, tensor in bucket}


def one_bucket(weights: dict[str, Tensor]) -> list[list[tuple[str, Tensor]]]:
    """``weights`` as `WeightPublisher.publish` takes them."""
    return [list(weights.items())]


def worst(values: Sequence[float]) -> float:
    """The largest of ``values``, rounded for a table."""
    return round(max(values), 4)
