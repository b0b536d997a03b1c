"""What adapters do on a real engine, vLLM's or SGLang's."""

from __future__ import annotations

from pathlib import Path

from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tests.e2e.reference_models import ReferenceModels
from tests.e2e.test_engine import TOLERANCE, differences, random_row


async def adapters_replace_each_other(pool: EnginePool, reference: ReferenceModels, folder: Path, first: int) -> None:
    """An adapter is a smaller payload, the next one takes its place, and full weights theirs. The weights get the
    versions ``first`` to ``first + 3``."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3ForCausalLM

    publisher = WeightPublisher(pool)
    await publisher.publish(first, reference.buckets("A"))
    for version in (first + 1, first + 2):
        base = Qwen3ForCausalLM.from_pretrained(reference.folders["A"])
        config = LoraConfig(
            r=8, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
        )
        adapted = get_peft_model(base, config).eval()
        adapted.save_pretrained(folder / str(version))
        report = await publisher.publish_adapter(version, folder / str(version))
        assert report.bytes < 400_000
        reference.models["adapted"] = adapted
        prompt = random_row(120, seed=version)
        generation = await pool.generate(prompt, SamplingParams(max_tokens=16, ignore_eos=True), deadline=60)
        assert set(generation.versions) == {version}
        assert max(await differences(reference, "adapted", prompt, generation)) < TOLERANCE
        assert max(await differences(reference, "A", prompt, generation)) > 0.01
    await publisher.publish(first + 3, reference.buckets("B"))
    row = random_row(60, seed=5)
    await check_parity(pool, [row], [reference.logprobs("B", row)], tolerance=Tolerance.largest(TOLERANCE))
