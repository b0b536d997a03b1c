"""A real engine with a tiny random model of a family; new weights are published into it as the trainer publishes."""

from __future__ import annotations

import random
from pathlib import Path

import torch

from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.cases.policies import policy_of
from tests.strategy.families.models import build
from tests.strategy.test_compute import transformers_outputs
from tests.strategy.tiny import connected

# Families that vLLM's engine for CPUs computes in bfloat16 only.
BFLOAT16 = {"Qwen3.5"}
HEAD_DIM = 64  # vLLM's CPU attention has no heads of width 16
LENGTH, NEW, DEADLINE = 40, 24, 300.0


async def measure(name: str, folder: Path) -> dict[str, float]:
    """Largest differences of sampled tokens' log-probs: ``before`` a sync, ``after`` it, and ``stale``, of the weights
    before against the trainer's after."""
    policy = policy_of(build(name, HEAD_DIM), folder / "policy")
    trainer = connected("d1")
    model = trainer.parallelize(policy)
    dtype = "bfloat16" if name in BFLOAT16 else "float32"
    settings = EngineSettings(
        model_path=str(policy), dtype=dtype, max_model_len=256, kv_cache_gib=0.25, log_path=folder / "engine.log"
    )
    generator = random.Random(0)
    prompts = [[generator.randrange(3, 500) for _ in range(length)] for length in (LENGTH, 2 * LENGTH)]
    async with EnginePool(settings) as pool:
        before, tokens = await _differences(pool, trainer.model, prompts)
        with torch.no_grad():
            torch.manual_seed(5)
            for parameter in model.parameters():
                parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0.05)
        stale = _largest(trainer.model, tokens)
        report = await WeightPublisher(pool).publish(1, trainer.iter_full_weights())
        assert report.version == 1
        after, _ = await _differences(pool, trainer.model, prompts)
    return {"before": before, "after": after, "stale": stale}


def tolerance(name: str) -> float:
    """In nats, of the largest difference."""
    return 0.03 if name in BFLOAT16 else 1e-4


Sampled = list[tuple[list[int], tuple[int, ...], tuple[float, ...]]]


async def _differences(pool: EnginePool, model: torch.nn.Module, prompts: list[list[int]]) -> tuple[float, Sampled]:
    sampling = SamplingParams(max_tokens=NEW, ignore_eos=True)
    found: Sampled = []
    for number, prompt in enumerate(prompts):
        generation = await pool.generate(prompt, sampling, session=str(number), deadline=DEADLINE)
        found.append((prompt, generation.token_ids, generation.logprobs))
    return _largest(model, found), found


@torch.no_grad()
def _largest(model: torch.nn.Module, sampled: Sampled) -> float:
    """Against the trainer's own modules, called as transformers calls them."""
    worst = 0.0
    for prompt, tokens, logprobs in sampled:
        ids = torch.tensor([[*prompt, *tokens]])
        labels = torch.cat([ids[:, 1:], torch.zeros(1, 1, dtype=torch.int64)], 1)
        mask = torch.ones_like(ids, dtype=torch.bool)
        row = transformers_outputs(model, {"input_ids": ids, "labels": labels, "loss_mask": mask})
        ours = row.logprobs[0, len(prompt) - 1 : -1]
        worst = max(worst, float((ours - torch.tensor(logprobs)).abs().max()))
    return worst
