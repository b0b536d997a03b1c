"""Every recipe in conf/experiment composes and would start on the machines it is written for."""

import sys
from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.run.compose import load_config
from tests.run.models import described

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import ablations

# Recipes whose layout or template no tiny policy has.
OF_ONE_MODEL = {"qwen3-30b-a3b-8gpu": "qwen3-30b-a3b", "qwen3-4b-lora-24gb": "qwen3-4b"}
BASE = ("experiment=learn", *ablations.FULL)
RECIPES = sorted(path.stem for path in (Path(__file__).resolve().parents[2] / "conf" / "experiment").glob("*.yaml"))


@pytest.fixture(scope="module")
def long_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in place of a real model's: a plan checks it but loads no weights."""
    folder = tmp_path_factory.mktemp("policy")
    return build_tiny_policy(folder, ["check the line. " * 30], vocab_size=320, max_position_embeddings=40_960)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_would_start(name, long_policy, tmp_path, capsys):
    words = [f"experiment={name}", "mode=plan"]
    if not load_config(words, check=False).tiny:
        policy = described(tmp_path, OF_ONE_MODEL[name]) if name in OF_ONE_MODEL else long_policy
        words.append(f"actor.path={policy}")
    assert train.main(words) == 0, capsys.readouterr().out
    assert "would not start" not in capsys.readouterr().out


def test_the_recipe_that_teaches_trains_on_no_combination_of_issues_it_is_measured_on():
    from tau2_lightning.environment import load_tasks
    from tau2_lightning.environment.tasks import issue_combination

    config = load_config(["experiment=learn"])
    trained = [task.task_id for task in load_tasks("telecom", config.train_dataset.split, solo_mode=True)]
    held_out = [task.task_id for task in load_tasks("telecom", config.valid_dataset.split, solo_mode=True)]
    assert len(trained) == 2245 and len(held_out) == 40
    assert not set(map(issue_combination, trained)) & set(map(issue_combination, held_out))


def test_the_real_recipe_fine_tunes_with_the_settings_of_a_real_model():
    config = load_config(["experiment=qwen3-8b-telecom", "cluster.gpu_memory_gib=79"], check=False)
    assert config.warm_start.learning_rate <= 1e-5 and config.warm_start.require_reward == 1.0
    assert config.actor.path == "Qwen/Qwen3-8B" and config.actor.dtype == "bfloat16"
    assert config.algorithm["proximal"] == "recompute"


def test_every_ablation_changes_what_it_says():
    changed = {name: load_config([*BASE, *words]) for name, words in ablations.VARIANTS.items()}
    recipe = changed[ablations.RECIPE]
    assert [name for name, config in changed.items() if config == recipe] == [ablations.RECIPE]
    assert recipe.rollout.filter_groups and not changed["filter-off"].rollout.filter_groups
    assert changed["gspo"].algorithm["_target_"].endswith("GSPO")
    assert changed["dr_grpo"].algorithm["std_level"] == "none"
    assert load_config(["experiment=learn", *ablations.SHORT_STEPS]).train_dataset.batches_per_epoch == 2
