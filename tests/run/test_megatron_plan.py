"""Plans of AReaL's tau2 recipes for mixtures of experts: the same words, a notice, and the memory of a GPU."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from transformers import Qwen3MoeConfig

from tau2_lightning import train
from tau2_lightning.evaluation.report import report_payload
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.notices import notices

NOTICE = "computed by archon, the trainer of this project, in the layout of the same letters; megatron-core is not used"
SHAPES = {
    "30b": {"hidden_size": 2048, "num_hidden_layers": 48, "num_attention_heads": 32, "moe_intermediate_size": 768},
    "235b": {"hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64, "moe_intermediate_size": 1536},
}
# Name -> (nodes of eight GPUs, allocation, trainer ranks, the last rank's place, GiB of a GPU).
RECIPES = {
    "30b": (8, "sglang:d8t4+megatron:(attn:d4p4t2|ffn:d2p4e4)", 32, "p3 d3 c0 t1 e3", (35, 40)),
    "235b": (10, "sglang:d4t8+megatron:(attn:d1p12t4|ffn:d1p12e4)", 48, "p11 d0 c0 t3 e3", (110, 125)),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with the configurations of Qwen3-30B-A3B and Qwen3-235B-A22B, and the weights of a tiny model."""
    made = {}
    for name, shape in SHAPES.items():
        folder = build_tiny_policy(tmp_path_factory.mktemp("model") / name, ["some words " * 50], vocab_size=320)
        Qwen3MoeConfig(
            num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, vocab_size=151936,
            max_position_embeddings=40960, tie_word_embeddings=False, architectures=["Qwen3MoeForCausalLM"], **shape,
        ).save_pretrained(folder)  # fmt: skip
        made[name] = str(folder)
    return made


@pytest.fixture(autouse=True)
def weights_are_taken_for_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tau2_lightning.strategy.weight_check._differences", lambda *_: ())


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_planned_as_it_is(name: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    nodes, allocation, ranks, last, (low, high) = RECIPES[name]
    words = [
        f"cluster.n_nodes={nodes}", "cluster.n_gpus_per_node=8", "scheduler.type=slurm", f"actor.path={folders[name]}",
        "rollout.engine_python=/cluster/sglang/bin/python",
        f"allocation_mode={allocation}", "econfig.domain=airline", "econfig.user=scripted",
        "actor.megatron.recompute_granularity=full", "actor.megatron.moe_token_dispatcher_type=alltoall",
    ]  # fmt: skip
    train.main([*words, "mode=plan"])
    shown = capsys.readouterr().out
    assert NOTICE in shown and "moe_token_dispatcher_type, recompute_granularity have no effect" in shown
    rows = [line for line in shown.splitlines() if re.search(r"node \d+ gpu \d .*megatron:\(attn", line)]
    assert len(rows) == ranks and last in rows[-1]
    found = re.search(rf"memory of each of the {ranks} GPU\(s\) of megatron:\S+: ([\d.]+) GiB", shown)
    assert found is not None and low < float(found[1]) < high
    kept = {line.split("would not start here: ")[1].split("=")[0] for line in shown.splitlines() if "would not" in line}
    # The words are right even if this machine has no sbatch or GPUs.
    assert kept <= {"scheduler.type", "rollout.engine_urls", "cluster.n_gpus_per_node"}, shown


def test_keys_that_change_numbers_and_split_experts_are_refused_together(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "mode=plan", "cluster.n_nodes=8", "cluster.n_gpus_per_node=8", "scheduler.type=slurm",
        f"actor.path={folders['30b']}", "allocation_mode=sglang:d8t4+megatron:(attn:d4p4t2|ffn:d1p4t2e4)",
        "actor.megatron.moe_aux_loss_coeff=0.001", "econfig.domain=airline", "econfig.user=scripted",
    ]  # fmt: skip
    assert train.main(words) == 2
    shown = capsys.readouterr().out
    assert "t2 in ffn would split each expert's matrices" in shown and "adds no loss that balances experts" in shown


def test_the_notice_is_kept_in_the_configuration_and_the_report(tmp_path: Path) -> None:
    config = load_config(["allocation_mode=vllm:d1+megatron:d2", f"output_dir={tmp_path}", "trial_name=x"], check=False)
    folder = RunFolder.create(config, notices=notices(config))
    text = (folder.root / "config.yaml").read_text()
    assert text.startswith("# notice: megatron:d2: computed by archon")
    assert yaml.safe_load(text)["allocation_mode"] == "vllm:d1+megatron:d2"
    assert report_payload([], {}, 0, notices=["one"])["notices"] == ["one"]
