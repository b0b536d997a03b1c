"""Measures how much of a bfloat16 model one optimizer step changes, and how much `mode=delta` sends for it.

    python benchmarks/delta_sync.py --model FOLDER [--steps 3] [--tokens 256] [--lr 1e-6]

Plain transformers and torch's AdamW train float32 weights on text (this project's pages). After each step, the
trainer's side of a delta sync finds the changes, which are applied to a copy. The copy must equal the model bit for
bit.

Two starts are measured. *From the checkpoint*: the float32 weights are exactly bfloat16 values, so few roundings change
at first. *Long after*: each float32 weight begins at a random place in the interval that rounds to its bfloat16 value,
as after thousands of steps. This is what a long run has. The last line is JSON: the largest ratio of sent bytes to all
bytes, and the aim.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tau2_lightning.rollout.engine.in_vllm.changes import unpack
from tau2_lightning.rollout.weights.files import WeightFiles
from tau2_lightning.rollout.weights.sent_copy import SentCopy
from tau2_lightning.rollout.weights.wire import Bucket, take

AIM = 0.05
ROOT = Path(__file__).parents[1]


def text() -> str:
    """Text that every checkout has: pages of the documentation."""
    return "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("[a-p]*.md")))


def spread(model: torch.nn.Module) -> None:
    """Move every float32 weight to a random place in the interval that rounds to the same bfloat16 value."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            exact = parameter.to(torch.bfloat16).float()
            up = (exact.view(torch.int32) + 0x8000).view(torch.float32)  # half a unit of the last place away from 0
            moved = exact + (up - exact) * (2 * torch.rand(exact.shape, generator=generator) - 1) * 0.99
            parameter.copy_(torch.where(moved.to(torch.bfloat16).float() == exact, moved, exact))


def wire(model: torch.nn.Module) -> Bucket:
    """The weights as they are sent to a bfloat16 engine, without a tied head."""
    buckets: Iterator[list[tuple[str, Tensor]]] = iter([list(model.named_parameters())])
    taken = take(buckets, torch.bfloat16, on_cpu=True)
    assert taken is not None
    return taken


def steps(folder: Path, count: int, tokens: int, lr: float, *, long_after: bool) -> list[float]:
    """Ratio of sent to all bytes after each step."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    rows = torch.tensor(AutoTokenizer.from_pretrained(folder)(text())["input_ids"]).unfold(0, tokens, tokens)
    if long_after:
        spread(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.999), weight_decay=0.01)
    ratios = []
    with tempfile.TemporaryDirectory() as place:
        copy = SentCopy(WeightFiles(Path(place), Path(place)))
        bucket = wire(model)
        copy.begin(in_place=True)
        copy.take("v0", bucket)
        copy.end()
        engine = {name: _bits(tensor).copy() for name, tensor in bucket.items()}
        whole = sum(tensor.nbytes for tensor in bucket.values())
        for step in range(count):
            batch = rows[step : step + 1]
            model(input_ids=batch, labels=batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bucket, began = wire(model), time.perf_counter()
            copy.begin(in_place=True)
            copy.take(f"v{step + 1}", bucket)
            copy.end()
            found = time.perf_counter() - began
            sent = changed = 0
            for path in copy.changes or ():
                sent += path.stat().st_size
                for name, change in unpack(path.read_bytes()):
                    change.apply(engine[name])
                    changed += len(change.values)
            wrong = [name for name, tensor in bucket.items() if not np.array_equal(engine[name], _bits(tensor))]
            if wrong:
                raise SystemExit(f"not bit-exact: {wrong}")
            values = sum(tensor.numel() for tensor in bucket.values())
            start = "long after" if long_after else "from the checkpoint"
            print(
                f"{start}, step {step + 1}: {changed / values:.3%} of {values / 1e6:.0f} M values changed; "
                f"{sent / 1e6:.2f} of {whole / 1e6:.0f} MB sent ({sent / whole:.3%}); found in {found:.2f} s",
                flush=True,
            )
            ratios.append(sent / whole)
    return ratios


def _bits(tensor: Tensor) -> np.ndarray:
    kind = {2: torch.int16, 4: torch.int32}[tensor.itemsize]
    bits: np.ndarray = tensor.detach().reshape(-1).view(kind).numpy().view(f"u{tensor.itemsize}")
    return bits


def main() -> None:
    """Measure both starts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache/tau2_lightning/smollm2-135m-instruct")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a step")
    parser.add_argument("--lr", type=float, default=1e-6)
    arguments = parser.parse_args()
    found = {
        name: max(steps(arguments.model, arguments.steps, arguments.tokens, arguments.lr, long_after=long_after))
        for name, long_after in (("from_the_checkpoint", False), ("long_after", True))
    }
    ratios = {name: round(value, 5) for name, value in found.items()}
    print(json.dumps({"ratios": ratios, "aims": dict.fromkeys(ratios, AIM)}))


if __name__ == "__main__":
    main()
