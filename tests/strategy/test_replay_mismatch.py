"""The mismatch that replay removes, without an engine: transformers in bfloat16 samples' log-probs, we in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from benchmarks.router_replay import AIMS, mismatches, moe_model
from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.segments import Segment

VOCABULARY, END = 384, 2


def recorded_rows(count: int = 4, length: int = 192) -> Batch:
    """Rows with the log-probs and the experts of a bfloat16 forward pass, as an engine would report them."""
    model = moe_model(VOCABULARY, END, seed=0).bfloat16()
    seen: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.mlp.gate.register_forward_hook(lambda gate, args, output: seen.append(output[2]))
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (count, length), generator=generator)
    made = []
    for row, tokens in zip(scoring_batch(ids.tolist()).rows, ids, strict=True):
        seen.clear()
        with torch.no_grad():
            logprobs = model(tokens[None]).logits[0, :-1].float().log_softmax(-1)
        picked = logprobs.gather(1, tokens[1:, None])[:, 0]
        experts = torch.stack(seen, 1).to(torch.uint8).numpy()
        leaf = Segment.of(tokens.tolist(), None, np.concatenate([np.zeros_like(experts[:1]), experts[:-1]]))
        made.append(replace(row, leaf=leaf, behaviour_logprobs=np.append(picked.numpy(), np.float32(0))))
    return Batch.from_rows(made)


def test_replay_lowers_the_mismatch_of_a_bfloat16_engine_tenfold() -> None:
    (found,) = mismatches(recorded_rows(), moe_model(VOCABULARY, END, seed=0), ["fp32"])
    assert found.share == 1.0
    assert found.plain > 1e-4, "negative control: without replay the two differ"
    assert found.ratio >= AIMS["mismatch_kl"], found
