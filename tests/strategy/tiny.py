"""A tiny Qwen3, ragged GRPO-like micro-batches and a token-weighted loss, all seeded."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# Imported here and not in the function, so that forked ranks inherit it.
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.microbatch import MicroBatch, ModelRows
from tau2_lightning.strategy.assembly import Options
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.outputs import TokenOutputs

CPU = torch.device("cpu")
VOCAB = 515  # odd on purpose: vocabulary shards are uneven


def tiny_model(
    *, tied: bool = False, family: str = "qwen3", layers: int = 4, vocab: int = VOCAB, positions: int = 256
) -> Any:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": vocab, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": positions,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    if family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**sizes))
        with torch.no_grad():  # biases start at zero, where a wrong bias gradient or shard would not show
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0.0, 0.1)
        return model
    if family.startswith("qwen3_moe"):
        moe: dict[str, Any] = {
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
        }
        moe["mlp_only_layers"] = [1] if "mixed" in family else []  # one layer has an MLP
        sizes["num_key_value_heads"] = 4 if "4kv" in family else 2
        return Qwen3MoeForCausalLM(Qwen3MoeConfig(head_dim=8, **moe, **sizes))
    return Qwen3ForCausalLM(Qwen3Config(head_dim=8, **sizes))


def tiny_batches(count: int = 4, seed: int = 1, longest: int = 100, *, packed: bool = True) -> list[MicroBatch]:
    """``count`` micro-batches of 1 or 2 ragged rows, for the model ``packed`` or right-padded."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[Any] = []
    for index in range(count):
        rows, length = 1 + index % 2, int(torch.randint(10, longest, (1,), generator=generator))
        lengths = torch.randint(length // 2, length + 1, (rows,), generator=generator)
        real = torch.arange(length)[None] < lengths[:, None]
        ids = torch.randint(1, VOCAB, (rows, length), generator=generator) * real
        mask = (torch.rand(rows, length, generator=generator) < 0.6) & real
        mask[:, -1] = False
        labels = torch.cat([ids[:, 1:], torch.zeros(rows, 1, dtype=torch.int64)], 1)
        batches.append(
            {
                "model": ModelRows.of(ids, labels, mask, lengths.tolist(), packed=packed),
                "input_ids": ids,
                "labels": labels,
                "loss_mask": mask,
                "lengths": lengths,
                "advantages": torch.randn(rows, length, generator=generator),
                "behaviour_logprobs": -6.2 + 0.1 * torch.randn(rows, length, generator=generator),
            }
        )
    total = torch.stack([mb["loss_mask"].sum() for mb in batches]).sum().float()
    for number, mb in enumerate(batches):
        mb["n_tokens"], mb["n"] = total, torch.tensor(number)
    return batches


def number_of(mb: MicroBatch) -> int:
    """Index of a micro-batch in ``tiny_batches``."""
    return int(cast("Any", mb)["n"])


def clipped_loss(outputs: TokenOutputs, mb: MicroBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """PPO's clipped objective with an entropy bonus, divided by the global token count."""
    ratio = (outputs.logprobs - mb["behaviour_logprobs"]).exp()
    surrogate = -torch.min(ratio * mb["advantages"], ratio.clamp(0.8, 1.2) * mb["advantages"])
    loss = ((surrogate - 0.01 * outputs.entropy) * mb["loss_mask"]).sum() / mb["n_tokens"]
    return loss, {"tokens": mb["loss_mask"].sum(), "entropy": outputs.entropy.sum()}


def share(batches: list[MicroBatch], compute: ArchonCompute) -> list[MicroBatch]:
    """This data rank's micro-batches; of two ranks, one gets more than the other."""
    if compute.spec.d == 2:
        cut = len(batches) // 2 + 1
        return batches[:cut] if compute.mesh.coordinate("dp") == 0 else batches[cut:]
    return batches[compute.mesh.coordinate("dp") :: compute.spec.d]


def connected(text: str, device: torch.device = CPU, **options: Any) -> ArchonCompute:
    """An `ArchonCompute` on the default process group of this (forked) process."""
    replicate = options.pop("replicate", 1)
    compute = ArchonCompute(ParallelSpec.parse(text), Options(**options), replicate=replicate)
    compute.connect(device)
    return compute


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def full_gradients(compute: ArchonCompute) -> dict[str, Tensor]:
    return {name: full(p.grad) for name, p in compute.model.named_parameters() if p.grad is not None}
