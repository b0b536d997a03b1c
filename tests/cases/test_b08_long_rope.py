"""B8: the log-probs of a row never depend on the other rows of a batch; a rotary embedding that does is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from torch import Tensor

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.microbatch import ModelRows
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.setup import build_strategy
from tests.cases.policies import planned, policy_of
from tests.strategy.distributed import fork
from tests.strategy.families.models import furthest, sizes
from tests.strategy.tiny import VOCAB, connected

ORIGINAL = 32  # positions of the model before its context was stretched
LONG = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.5, 2.0, 4.0]}


def phi(kind: str = "longrope") -> Any:
    torch.manual_seed(0)
    if kind == "dynamic":
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
        return t.LlamaForCausalLM(t.LlamaConfig(rope_parameters=rope, **sizes(8))).eval()
    rope = {**LONG, "long_factor": [2.0, 6.0, 12.0, 30.0]}
    config = t.Phi3Config(rope_parameters=rope, original_max_position_embeddings=ORIGINAL, **sizes(8))
    with torch.no_grad():
        model = t.Phi3ForCausalLM(config).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def rows(*lengths: int) -> Any:
    """One micro-batch. Rows of equal length have equal tokens, whatever the other rows are."""
    ids = torch.zeros(len(lengths), max(lengths), dtype=torch.int64)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(length))
    labels = torch.cat([ids[:, 1:], torch.zeros(len(lengths), 1, dtype=torch.int64)], 1)
    mask = labels > 0
    return {
        "model": ModelRows.of(ids, labels, mask, lengths, packed=True),
        "loss_mask": mask,
        "input_ids": ids,
        "labels": labels,
    }


def alone_and_beside(longest: int | None, layout: str = "d1") -> list[Tensor]:
    compute = connected(layout, longest=longest)
    compute.parallelize(phi())
    alone, beside = compute.token_outputs([rows(20), rows(20, 60)])
    again = compute.token_outputs([rows(20)])[0]
    return [alone.logprobs[0, :20], beside.logprobs[0, :20], again.logprobs[0, :20]]


@pytest.mark.parametrize("longest", [ORIGINAL, 4 * ORIGINAL, None])
def test_a_row_is_the_same_alone_and_beside_a_longer_one(longest: int | None) -> None:
    alone, beside, again = alone_and_beside(longest)
    assert furthest([beside, again], [alone, alone]) < 1e-5
    if longest == ORIGINAL:
        with torch.no_grad():
            want = torch.log_softmax(phi()(input_ids=rows(20)["input_ids"]).logits[0], -1)
        assert furthest([alone[:19]], [want.gather(-1, rows(20)["labels"][0, :, None])[:19, 0]]) < 1e-5


@pytest.mark.parametrize("layout", ["p2", "d2"])
def test_other_layouts_rotate_alike(layout: str) -> None:
    want = alone_and_beside(4 * ORIGINAL)
    for rank in fork(ParallelSpec.parse(layout).world, alone_and_beside, 4 * ORIGINAL, layout):
        assert furthest(rank, want) < 1e-5


def test_the_choice_is_the_engines_and_follows_the_longest_row() -> None:
    """vLLM takes the long factors when its max_model_len, ``gconfig.max_tokens``, is beyond the original positions."""
    short, long, most = (alone_and_beside(longest)[0] for longest in (ORIGINAL, ORIGINAL + 1, None))
    assert furthest([long], [most]) == 0.0 and furthest([short], [long]) > 1e-3


def test_the_control_transformers_alone_lets_a_long_row_change_a_short_one() -> None:
    model, batch = phi(), rows(20, 60)
    with torch.no_grad():
        alone = model(input_ids=rows(20)["input_ids"]).logits[0]
        beside = model(input_ids=batch["input_ids"], position_ids=torch.arange(60)[None]).logits[0, :20]
    assert furthest([alone], [beside]) > 1e-3


def test_a_run_tells_the_strategy_its_longest_row(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    config = load_config(["gconfig.max_tokens=3000"], check=False)
    assert folder and build_strategy(config).compute.options.longest == 3000


def test_dynamic_rope_is_refused_in_the_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, why = planned(capsys, policy_of(phi("dynamic"), tmp_path))
    assert code == 2 and len(why) == 1
    assert (
        "a 'llama' model cannot be trained: its rotary embedding depends on the length of a batch (dynamic)" in why[0]
    )
