"""Supervised fine-tuning under d, t and p, with and without adapters, gives the policy that one process gives."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.run.compose import load_config
from tau2_lightning.warm_start import make
from tests.jobs import small_policy
from tests.strategy.distributed import fork
from tests.strategy.tiny import tiny_model


def job(layout: str, policy: Path, data: Path, cache: Path, *words: str) -> str:
    """The folder of the policy that ranks with ``layout`` make."""
    spec = ParallelSpec.parse(layout)
    if spec.world > 1:  # the variables that a launcher would have set
        os.environ |= {"LOCAL_RANK": str(dist.get_rank()), "NODE_RANK": "0", "WORLD_SIZE": str(spec.world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}  # the process group exists already
    config = load_config(
        [
            f"actor.path={policy}", "actor=tiny", f"allocation_mode=vllm:d1+archon:{layout}", f"warm_start.data={data}",
            "warm_start.warmup_steps=0",
            "warm_start.steps=3", "warm_start.tokens_per_step=300", "warm_start.precision=fp32",
            "warm_start.valid_share=0.2", f"cache_dir={cache}", "trainer.progress=off", "trainer.accelerator=cpu",
            "actor.handwritten_elementwise=false", *words,
        ],
        check=False,
    )  # fmt: skip
    return str(make.warm_start_policy(config))


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose heads can be split in two, with the tokenizer of the tiny policy."""
    folder = tmp_path_factory.mktemp("base") / "model"
    tiny_model(tied=True, positions=4096).save_pretrained(folder)
    load_tokenizer(small_policy(tmp_path_factory)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("words", [(), ("actor.lora.r=2", "warm_start.learning_rate=0.01")], ids=["full", "lora"])
@pytest.mark.parametrize("layout", ["d2", "t2", pytest.param("p2", marks=pytest.mark.slow)])
def test_every_layout_makes_the_policy_of_one_process(
    layout: str, words: tuple[str, ...], policy: Path, data: Path, tmp_path: Path
) -> None:
    one = Path(fork(1, job, "d1", policy, data, tmp_path / "one", *words)[0])
    ranks = fork(ParallelSpec.parse(layout).world, job, layout, policy, data, tmp_path / "many", *words)
    many = Path(ranks[0])
    assert set(ranks) == {str(many)}
    a, b, start = (load_file(folder / "model.safetensors") for folder in (many, one, policy))
    assert a.keys() == b.keys()
    # Means: Adam makes a full step of a gradient that is nothing but rounding.
    learned = {name: float((b[name] - start[name]).abs().mean()) for name in b}
    assert max(learned.values()) > 1e-3, "it learned nothing"
    assert max(float((a[name] - b[name]).abs().mean()) for name in b) < 0.01 * max(learned.values())
    facts = [json.loads((folder / "warm_start.json").read_text()) for folder in (many, one)]
    for name in ("sft/loss", "sft/valid_loss"):
        assert facts[0][name] == pytest.approx(facts[1][name], rel=1e-3), name
    assert (many / "adapter" / "adapter_config.json").is_file() == bool(words)


@pytest.mark.slow
def test_compiled_it_learns_the_same(policy: Path, data: Path, tmp_path: Path) -> None:
    made = [
        load_file(
            Path(fork(1, job, "d1", policy, data, tmp_path / word, f"actor.compile={word}")[0]) / "model.safetensors"
        )
        for word in ("false", "true")
    ]
    assert all(torch.allclose(made[0][name], made[1][name], atol=1e-4) for name in made[0])
