"""The real vLLM returns the experts it chose, also of cached prompts and new weights, and the trainer replays them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.router_replay import AIMS, Player, mismatches, model_of, moe_policy, settings_of
from tau2_lightning.batch.batch import Batch
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.publisher import WeightPublisher

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

DEADLINE = 300.0
SAMPLING = SamplingParams(max_tokens=8, ignore_eos=True)


def check(batch: Batch, model: object) -> None:
    for found in mismatches(batch, model):
        assert found.share == 1.0
        assert found.plain > 1e-4, "negative control: without replay the two differ"
        assert found.ratio >= AIMS["mismatch_kl"], found


@pytest.mark.asyncio
async def test_replay_closes_the_gap_between_engine_and_trainer(tmp_path: Path) -> None:
    policy = moe_policy(tmp_path / "policy")
    async with EnginePool(settings_of(policy, tmp_path / "engine.log")) as pool:
        await pool.wait_ready()
        models = [model_of(policy, seed) for seed in (0, 1)]
        vocabulary = models[0].config.vocab_size
        player = Player(pool, policy)
        check(await player.batch(2, 4, 0), models[0])

        # A cached prompt has the experts that its keys and values were computed with.
        prompt = torch.randint(0, vocabulary, (200,), generator=torch.Generator().manual_seed(0)).tolist()
        asked = [
            await pool.generate(prompt, SamplingParams(8, ignore_eos=True, experts_from=start), deadline=DEADLINE)
            for start in (0, 0, 150)
        ]
        assert [one.cached_tokens > 100 for one in asked] == [False, True, True]
        first, again, rest = [one.experts for one in asked]
        assert first is not None and again is not None and rest is not None
        assert first.shape == (207, 4, 4) and int(first.max()) < 32
        assert (again[:192] == first[:192]).all() and (rest[:42] == first[150:192]).all()
        assert (await pool.generate(prompt, SAMPLING, deadline=DEADLINE)).experts is None
        stream = [
            chunk
            async for chunk in pool.stream(
                prompt, SamplingParams(8, ignore_eos=True, experts_from=0), deadline=DEADLINE
            )
        ]
        assert stream[-1].experts is not None and stream[-1].experts.shape == (207, 4, 4)

        # After new weights: other experts, and the log-probs of exactly these weights.
        named = [(name, parameter.detach()) for name, parameter in models[1].named_parameters()]
        await WeightPublisher(pool).publish(1, [named])
        check(await player.batch(2, 4, 1), models[1])
        changed = await pool.generate(prompt, SamplingParams(8, ignore_eos=True, experts_from=0), deadline=DEADLINE)
        assert changed.experts is not None and (changed.experts[:199] != first[:199]).mean() > 0.5
