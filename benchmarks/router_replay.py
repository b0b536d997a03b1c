"""Measures how much the mismatch of engine and trainer shrinks when the trainer replays the engine's experts.

A small Qwen3-MoE with random weights (4 layers, 32 experts, 4 of them for each token) plays conversations of three
turns through the proxy with a real vLLM server in bfloat16, before and after a weight synchronisation. The trainer then
computes the log-probs of the sampled tokens, in float32 and under bfloat16 autocast, with and without the recorded
experts. The measure is the run's own ``mismatch_kl``: k3 of KL(engine || trainer), in nats per token.

    python benchmarks/router_replay.py [--groups 4] [--samples 4]

Experts are given larger weights than a fresh model has: at first they do next to nothing, and then it does not matter
which of them a token visits. The last line is JSON: ``ratios`` (mismatch without replay over mismatch with it, the
smallest of the four) and their ``aims``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tau2_lightning.algorithm import GRPO
from tau2_lightning.algorithm.off_policy import mismatch_metrics
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.experts import replayed_share
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.policy.tiny import train_tokenizer
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.proxy.chat_service import ChatService
from tau2_lightning.rollout.proxy.direct import DirectPolicyClient
from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.store import SessionStore
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.parallelize import Precision
from tau2_lightning.trajectory import Group, Rollout

AIMS = {"mismatch_kl": 10.0}
DEADLINE = 300.0
TURNS = 3
SENTENCE = "check the line status of a phone plan or bill and restart roaming for every device on this account"
SIZES: dict[str, int] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,  # vLLM on CPU has no kernel for 16 or 32 beside experts
    "moe_intermediate_size": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Mismatch:
    """Engine against trainer, in nats per token, with and without replay, and the share of positions replayed."""

    name: str
    replayed: float
    plain: float
    share: float

    @property
    def ratio(self) -> float:
        return self.plain / self.replayed


def moe_model(vocab_size: int, end: int, seed: int) -> Any:
    """A Qwen3-MoE with random weights that bfloat16 can hold, as float32."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(seed)
    tokens = {"vocab_size": vocab_size, "bos_token_id": None, "eos_token_id": end, "pad_token_id": end}
    config: Any = Qwen3MoeConfig(norm_topk_prob=True, tie_word_embeddings=False, **tokens, **SIZES)
    model: Any = Qwen3MoeForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".experts." in name:
                parameter.mul_(4.0)
            parameter.copy_(parameter.bfloat16())
    return model


def moe_policy(path: Path, seed: int = 0) -> Path:
    """A folder with such a model, a tokenizer and a chat template."""
    tokenizer = train_tokenizer([f"{SENTENCE}. "] * 20, 512)
    model = moe_model(len(tokenizer), int(tokenizer.convert_tokens_to_ids("<|im_end|>")), seed)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def model_of(policy: Path, seed: int) -> Any:
    """Other random weights for the model at ``policy``."""
    config = json.loads((policy / "config.json").read_text())
    return moe_model(config["vocab_size"], config["eos_token_id"], seed)


def settings_of(policy: Path, log_path: Path) -> EngineSettings:
    """A bfloat16 engine that returns the experts it chose."""
    return EngineSettings(
        model_path=str(policy),
        dtype="bfloat16",
        max_model_len=2048,
        kv_cache_gib=0.25,
        routed_experts=True,
        log_path=log_path,
    )


class Player:
    """Plays conversations through a proxy over ``pool``."""

    def __init__(self, pool: EnginePool, policy: Path) -> None:
        self.store = SessionStore()
        settings = ProxySettings(max_new_tokens=32, return_routed_experts=True, request_timeout=DEADLINE)
        self.service = ChatService(self.store, ChatFormat.from_pretrained(policy), pool, settings)

    async def batch(self, groups: int, samples: int, version: int) -> Batch:
        """A batch of conversations; those of one group have the same beginning."""
        work = [self._rollout(group, sample) for group in range(groups) for sample in range(samples)]
        rollouts = await asyncio.gather(*work)
        parts = [tuple(rollouts[i * samples : (i + 1) * samples]) for i in range(groups)]
        made = [Group(str(i), str(i), part) for i, part in enumerate(parts)]
        return Batch.from_groups(made, GRPO(), version=version)

    async def _rollout(self, group: int, sample: int) -> Rollout:
        session = self.store.start()
        client = DirectPolicyClient(self.service, session.api_key, DEADLINE)
        messages: list[dict[str, Any]] = []
        for turn in range(TURNS):
            rng = random.Random(f"{group}, {turn}" if turn == 0 else f"{group}, {turn}, {sample}")
            words = " ".join(rng.choices(SENTENCE.split(), k=60 if turn == 0 else 12))
            messages.append({"role": "user", "content": words})
            messages.append(await client.complete({"messages": messages}))
        rows = self.store.export(session.session_id)
        self.store.end(session.session_id)
        return Rollout(str(group), str(group), sample, float(sample % 2), rows)


def mismatches(batch: Batch, model: Any, precisions: Sequence[Precision] = ("fp32", "bf16")) -> list[Mismatch]:
    """The mismatch of ``batch`` under ``model``, which is what the engine served, for each precision of the trainer."""
    share = replayed_share(row.leaf for row in batch.rows)
    found = []
    for precision in precisions:
        compute = ArchonCompute(ParallelSpec.parse("d1"), Options(precision=precision))
        compute.connect(torch.device("cpu"))
        compute.parallelize(model)
        values = [_mismatch(compute, batch, experts=experts) for experts in (True, False)]
        found.append(Mismatch(precision, values[0], values[1], share))
    return found


def _mismatch(compute: ArchonCompute, batch: Batch, *, experts: bool) -> float:
    microbatches = batch.microbatches(4096, packed=compute.packs, experts=experts)
    total = 0.0
    for mb, out in zip(microbatches, compute.token_outputs(microbatches), strict=True):
        mask = mb["loss_mask"]
        total += float(mismatch_metrics(out.logprobs, mb["behaviour_logprobs"], mask)["mismatch_kl"][mask].sum())
    return total / batch.n_tokens


async def measure(groups: int = 4, samples: int = 4) -> list[Mismatch]:
    """Mismatches before and after a weight synchronisation."""
    found: list[Mismatch] = []
    with tempfile.TemporaryDirectory(prefix="tau2-lightning-bench-") as folder:
        async with AsyncExitStack() as stack:
            policy = moe_policy(Path(folder) / "policy")
            started = time.perf_counter()
            pool = await stack.enter_async_context(EnginePool(settings_of(policy, Path(folder) / "engine.log")))
            await pool.wait_ready()
            print(f"engine started in {time.perf_counter() - started:.0f} s", flush=True)
            player = Player(pool, policy)
            for version, when in enumerate(("first weights", "after a synchronisation")):
                model = model_of(policy, seed=version)
                if version:
                    named = [(name, parameter.detach()) for name, parameter in model.named_parameters()]
                    await WeightPublisher(pool).publish(version, [named])
                batch = await player.batch(groups, samples, version)
                for each in mismatches(batch, model):
                    found.append(each)
                    line = f"{when}, trainer in {each.name}: {batch.n_tokens} tokens, replayed {each.share:.1%}"
                    kl = f"mismatch_kl {each.plain:.2e} -> {each.replayed:.2e} nats, ratio {each.ratio:.0f}"
                    print(f"{line}, {kl}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--samples", type=int, default=4)
    found = asyncio.run(measure(**vars(parser.parse_args())))
    print(json.dumps({"ratios": {"mismatch_kl": round(min(each.ratio for each in found), 1)}, "aims": AIMS}))


if __name__ == "__main__":
    main()
