"""What the strategy costs: d1 against a careful torch loop by hand, and against the usual loop.

Run: python benchmarks/parallel_overhead.py [--steps 30]. Every ratio is measured side by side in one run, alternating.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from tau2_lightning.allocation import ParallelSpec
from tau2_lightning.strategy.engine import ArchonEngine
from tau2_lightning.strategy.outputs import TokenOutputs

VOCAB, LENGTH, ROWS, COUNT = 4096, 256, 2, 2


def model() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=4, head_dim=32, max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def batches() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    out = []
    for _ in range(COUNT):
        ids = torch.randint(0, VOCAB, (ROWS, LENGTH), generator=generator)
        mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.3
        out.append({"input_ids": ids, "labels": ids.roll(-1, 1), "loss_mask": mask})
    return out


def loss(outputs: TokenOutputs, mb: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return -outputs.logprobs.sum() / (COUNT * ROWS * LENGTH), {"tokens": mb["loss_mask"].sum()}


def plain_step(net: Any, optimizer: torch.optim.Optimizer, data: list[dict[str, torch.Tensor]]) -> None:
    """A careful loop by hand: head at trained positions only, cross-entropy, clip, step."""
    optimizer.zero_grad()
    for mb in data:
        hidden = net.model(input_ids=mb["input_ids"], use_cache=False).last_hidden_state[mb["loss_mask"]]
        nll = F.cross_entropy(net.lm_head(hidden).float(), mb["labels"][mb["loss_mask"]], reduction="sum")
        (nll / (COUNT * ROWS * LENGTH)).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()


def naive_step(net: Any, optimizer: torch.optim.Optimizer, data: list[dict[str, torch.Tensor]]) -> None:
    """The usual loop: logits everywhere."""
    optimizer.zero_grad()
    for mb in data:
        every = torch.log_softmax(net(input_ids=mb["input_ids"], use_cache=False).logits.float(), -1)
        picked = every.gather(-1, mb["labels"][..., None])[..., 0]
        (-(picked * mb["loss_mask"]).sum() / (COUNT * ROWS * LENGTH)).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
    optimizer.step()


def our_step(engine: ArchonEngine, optimizer: torch.optim.Optimizer, data: list[dict[str, torch.Tensor]]) -> None:
    optimizer.zero_grad()
    engine.forward_backward(data, loss)
    engine.clip_grad_norm(1.0)
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    steps = parser.parse_args().steps
    engine = ArchonEngine(ParallelSpec())
    engine.connect(torch.device("cpu"))
    nets = {"careful loop": model(), "usual loop": model(), "ArchonStrategy d1": engine.parallelize(model())}
    optimizers = {name: torch.optim.AdamW(net.parameters(), lr=1e-4) for name, net in nets.items()}
    data = batches()
    run: dict[str, Callable[[], None]] = {
        "careful loop": lambda: plain_step(nets["careful loop"], optimizers["careful loop"], data),
        "usual loop": lambda: naive_step(nets["usual loop"], optimizers["usual loop"], data),
        "ArchonStrategy d1": lambda: our_step(engine, optimizers["ArchonStrategy d1"], data),
    }
    seconds: dict[str, list[float]] = {name: [] for name in run}
    for step in range(steps + 2):
        for name, function in run.items():
            start = time.perf_counter()
            function()
            if step >= 2:
                seconds[name].append(time.perf_counter() - start)
    ours = seconds["ArchonStrategy d1"]
    for name, values in seconds.items():
        # Paired per round: the machine's other work hits neighbours alike.
        ratio = statistics.median(mine / other for mine, other in zip(ours, values, strict=True))
        print(f"{name:18} {statistics.median(values) * 1e3:8.1f} ms/step   ours / this = {ratio:.3f}")


if __name__ == "__main__":
    main()
