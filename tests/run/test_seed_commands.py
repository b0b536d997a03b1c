"""Every command of AReaL's tau2 examples composes here under its own words and resolves to the layout it names."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import pytest
from transformers import Qwen3Config

from tau2_lightning import train
from tau2_lightning.launch.cluster import placement_of
from tau2_lightning.launch.placement import ServerPlace
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.run.compose import load_config

# The values of AReaL's config.yaml that its pages show, for its machines (eight GPUs per node).
EXAMPLE = "cluster.n_nodes=2 cluster.n_gpus_per_node=8 allocation_mode=sglang:d4t2+archon:d4p2t1"
PROXY_EXAMPLE = (
    "scheduler.type=slurm cluster.n_nodes=2 cluster.n_gpus_per_node=8 allocation_mode=sglang:d4t2+archon:d4p1t2 "
    "econfig.domain=airline econfig.max_steps=200 econfig.solo_mode=false "
    "econfig.user_llm_base_url=http://user.example:8000/v1"
)
USER = "econfig.user_llm_base_url=http://user.example:8000/v1 econfig.user_llm=user-model"

SLURM = """python3 -m areal.launcher.slurm \
    examples/tau2/tau2_train.py \
    --config examples/tau2/config.yaml \
    experiment_name=tau2-grpo \
    trial_name=run-airline \
    cluster.n_nodes=2 \
    allocation_mode=sglang:d4t2+archon:d4p2t1 \
    econfig.domain=airline \
    actor.path=/path/to/model"""
LOCAL = """python3 -m areal.launcher.local \
    examples/tau2/tau2_train.py \
    --config examples/tau2/config.yaml \
    cluster.n_nodes=1 \
    cluster.n_gpus_per_node=2 \
    allocation_mode=sglang:d1+archon:d1 \
    train_dataset.batch_size=4 \
    gconfig.n_samples=4 \
    econfig.domain=airline"""
PROXY_DEFAULT = "./tau2_rl.sh"
PROXY_SLURM = "python3 tau2_train.py config.yaml scheduler.type=slurm"
PROXY_TELECOM = """python3 tau2_train.py config.yaml \
    scheduler.type=slurm \
    econfig.domain=telecom \
    econfig.solo_mode=true"""


@dataclass(frozen=True)
class Resolved:
    """The result of a command: scheduler, engines (one entry per server), trainer layout and its (node, GPU) by
    rank."""

    scheduler: str
    engines: tuple[ServerPlace, ...]
    trainer: str
    ranks: tuple[tuple[int, int], ...]
    domain: str = "airline"
    solo: bool = False


FOUR_OF_TWO = tuple(ServerPlace(0, (gpu, gpu + 1)) for gpu in (0, 2, 4, 6))
SECOND_NODE = tuple((1, gpu) for gpu in range(8))
COMMANDS = {
    SLURM: Resolved("slurm", FOUR_OF_TWO, "archon:d4p2t1", SECOND_NODE),
    LOCAL: Resolved("local", (ServerPlace(0, (0,)),), "archon:d1", ((0, 1),)),
    PROXY_DEFAULT: Resolved("slurm", FOUR_OF_TWO, "archon:d4p1t2", SECOND_NODE),
    PROXY_SLURM: Resolved("slurm", FOUR_OF_TWO, "archon:d4p1t2", SECOND_NODE),
    PROXY_TELECOM: Resolved("slurm", FOUR_OF_TWO, "archon:d4p1t2", SECOND_NODE, "telecom", True),
}
NAMES = ["slurm", "local", "proxy", "proxy-slurm", "proxy-telecom"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the shape of Qwen3-8B, which their recipe trains; a plan looks at no weights."""
    folder = build_tiny_policy(tmp_path_factory.mktemp("model") / "qwen3-8b", ["some words " * 50], vocab_size=320)
    Qwen3Config(
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=40960,
        architectures=["Qwen3ForCausalLM"],
    ).save_pretrained(folder)
    return str(folder)


def our_words(command: str, model: str) -> list[str]:
    """The same key=value words, after what their configuration file sets; the launcher's name is ``scheduler.type``."""
    words = shlex.split(command)
    launcher = [f"scheduler.type={word.rpartition('.')[2]}" for word in words if word.startswith("areal.launcher.")]
    file = f"{EXAMPLE} {USER}" if launcher else PROXY_EXAMPLE
    given = [word for word in words if "=" in word and not word.startswith("actor.path=")]
    return [*file.split(), *launcher, *given, f"actor.path={model}"]


def as_vllm(words: list[str]) -> list[str]:
    return [word.replace("sglang:", "vllm:") for word in words]


@pytest.mark.parametrize(("command", "expected"), COMMANDS.items(), ids=NAMES)
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_command_resolves_to_its_layout(command: str, expected: Resolved, engine: str, model: str):
    words = our_words(command, model)
    config = load_config(as_vllm(words) if engine == "vllm" else words, check=False)
    placement = placement_of(config)
    assert config.scheduler.type == expected.scheduler
    assert placement.engines == expected.engines
    assert str(placement.allocation.training) == expected.trainer
    assert tuple((one.node, one.local) for one in placement.trainer) == expected.ranks
    assert (config.econfig.domain, bool(config.econfig.solo_mode)) == (expected.domain, expected.solo)


@pytest.mark.parametrize(("command", "expected"), COMMANDS.items(), ids=NAMES)
def test_its_plan_is_printed_and_only_the_machine_could_keep_it(command, expected, model, capsys, monkeypatch):
    # The folder has the configuration of Qwen3-8B, and the weights of a tiny model.
    monkeypatch.setattr("tau2_lightning.strategy.weight_check._differences", lambda *_: ())
    train.main([*as_vllm(our_words(command, model)), "mode=plan"])
    shown = capsys.readouterr().out
    for rank, (node, gpu) in enumerate(expected.ranks):
        row = next(line for line in shown.splitlines() if f"{expected.trainer} " in line and f" {rank} " in line[20:])
        assert f"node {node} gpu {gpu} " in row
    kept = {line.split("would not start here: ")[1].split("=")[0] for line in shown.splitlines() if "would not" in line}
    # The command is right even if this machine has no sbatch, vLLM or GPUs.
    assert kept <= {"scheduler.type", "rollout.engine_urls", "cluster.n_gpus_per_node"}, shown
    assert f"tau2 {expected.domain}" in shown
