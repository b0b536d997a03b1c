"""The plan of another machine from a config.json alone: its arithmetic, its refusals, and the recipes it holds for."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tau2_lightning import train
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.device_memory import GIB, DeviceMemory, memory_of_devices, sequence_cache
from tau2_lightning.run.memory_fit import changed, check_memory
from tau2_lightning.run.plan_disk import disk_of
from tau2_lightning.run.plan_time import work_of
from tests.run.models import MODELS, described

# Recipe, model, memory of a GPU as the driver reports it for a card of 80 or 24 GB.
RECIPES = [
    ("qwen3-8b-telecom", "qwen3-8b", 79.0),
    ("qwen3-30b-a3b-8gpu", "qwen3-30b-a3b", 79.0),
    ("qwen3-4b-lora-24gb", "qwen3-4b", 23.5),
    ("qwen3-1.7b-80gb", "qwen3-1.7b", 79.0),
    ("qwen3-4b-80gb", "qwen3-4b", 79.0),
]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {name: described(folder, name) for name in MODELS}


def configured(recipe: str, policy: Path, *words: str) -> RunConfig:
    return load_config([f"experiment={recipe}", "mode=plan", f"actor.path={policy}", *words], check=False)


def devices_of(recipe: str, policy: Path, *words: str) -> list[DeviceMemory]:
    return memory_of_devices(configured(recipe, policy, *words), policy)


@pytest.mark.parametrize(("recipe", "model", "memory"), RECIPES)
def test_a_recipe_plans_within_the_memory_of_its_gpus(recipe, model, memory, models, capsys):
    words = [f"experiment={recipe}", "mode=plan", f"actor.path={models[model]}", f"cluster.gpu_memory_gib={memory}"]
    assert train.main(words) == 0, capsys.readouterr().out
    told = capsys.readouterr().out
    assert "would not start" not in told and "DOES NOT FIT" not in told
    assert f"fits into {memory:.1f} GiB" in told and "holds a config.json only" in told
    for part in ("weights", "gradients", "optimizer", "activations", "engine's cache", "disk: ", "PFLOP"):
        assert part in told, part
    assert re.search(
        r"activations of micro-batches .*: [\d.]+ with none, [\d.]+ with selective, [\d.]+ with full", told
    )


def test_eight_billion_on_four_and_four_by_hand(models):
    """8.19 billion weights over four ranks: 4 bytes each for weights and gradients, 8 for moments."""
    trainer, engine = reversed(devices_of("qwen3-8b-telecom", models["qwen3-8b"], "cluster.gpu_memory_gib=79"))
    rank = trainer.trainer
    assert rank is not None and engine.engine is not None
    billions = 8.19e9 / 4
    assert rank.weights == pytest.approx(4 * billions, rel=0.01) and rank.gradients == rank.weights
    assert rank.optimizer == 2 * rank.weights
    # The input of each of 36 layers, 32,768 tokens of 4,096 numbers in two bytes.
    assert rank.activations == 36 * 32_768 * 4_096 * 2
    # Keys and values of 10,000 tokens in 36 layers with 8 heads of 128: bfloat16, and float32 sums of gradients.
    assert rank.prefix == 10_000 * 36 * 2 * 8 * 128 * (2 + 4)
    assert engine.engine.weights == pytest.approx(2 * 8.19e9, rel=0.01)
    assert engine.engine.token == 2 * 36 * 8 * 128 * 2
    assert engine.needed == pytest.approx(0.85 * 79 * GIB)
    assert trainer.needed == rank.total + 1.5 * GIB < 79 * GIB


def test_levers_give_what_their_names_say(models):
    def rank(*words: str):
        (one,) = devices_of("qwen3-4b-80gb", models["qwen3-4b"], *words)
        assert one.trainer is not None
        return one.trainer

    plain = rank("actor.optimizer.type=adam")
    assert rank("actor.optimizer.type=adam_bf16").optimizer == plain.optimizer // 2
    assert rank("actor.optimizer.type=adam_8bit").optimizer == pytest.approx(plain.optimizer / 3.94, rel=0.01)
    hosted = rank("actor.optimizer.type=adam", "actor.optimizer.offload=true")
    assert hosted.optimizer == 0 and hosted.host == plain.optimizer
    assert rank("actor.activation_offloading=true").activations == 0 < plain.activations
    away = rank("actor.fsdp.offload_params=true")
    assert away.state == 0 and away.host > plain.weights and away.gathered < plain.gathered
    lora = rank("actor.lora.r=16")
    narrow = rank("actor.lora.r=16", "actor.lora.base_dtype=bfloat16")
    assert lora.weights - narrow.weights == pytest.approx(2 * 4.02e9, rel=0.01)
    assert narrow.gathered < lora.gathered and narrow.optimizer == lora.optimizer < plain.optimizer / 20
    with_kl = rank("algorithm.kl_ctl=0.01")
    assert with_kl.reference == 2 * plain.weights


def test_what_cannot_fit_is_refused_with_the_keys_that_would_make_it_fit(models, capsys):
    words = ["experiment=qwen3-8b-telecom", "mode=plan", f"actor.path={models['qwen3-8b']}"]
    assert train.main([*words, "allocation_mode=vllm:d4+archon:d1", "cluster.gpu_memory_gib=79"]) == 2
    told = capsys.readouterr().out
    assert told.count("would not start here") == 1
    assert re.search(r"a GPU of archon:d1\S* needs 1\d\d\.\d GiB \(training: weights 30\.5 \+ gradients 30\.5", told)
    assert re.search(r"actor\.fsdp\.offload_params=true \(\d+\.\d GiB\)", told)
    assert re.search(r"actor\.lora\.r=32 actor\.lora\.base_dtype=bfloat16 \(\d+\.\d GiB\)", told)
    assert "actor.max_tokens_per_mb" not in told  # that alone would not do


def test_every_lever_that_is_named_does_make_it_fit(models):
    recipe, policy = "qwen3-8b-telecom", models["qwen3-8b"]
    config = configured(recipe, policy, "allocation_mode=vllm:d4+archon:d2", "cluster.gpu_memory_gib=79")
    (violation,) = check_memory(config, policy)
    named = re.findall(r"((?:[\w.]+=\S+ )+)\((\d+\.\d) GiB\)", violation.remedy)
    assert len(named) >= 2
    for words, gib in named:
        again = config
        for word in words.split():
            key, _, value = word.partition("=")
            typed: object = {"true": True}.get(value, int(value) if value.isdigit() else value)
            again = changed(again, key, typed)
        if "allocation_mode" in words:
            again = changed(again, "cluster.n_gpus_per_node", 8)
        devices = memory_of_devices(again, policy)
        assert all(one.fits for one in devices), words
        assert max(one.needed for one in devices) / GIB == pytest.approx(float(gib), abs=0.1)


def test_several_levers_together_are_named_when_none_does_alone(models):
    recipe, policy = "qwen3-8b-telecom", models["qwen3-8b"]
    config = configured(recipe, policy, "allocation_mode=vllm:d4+archon:d2", "cluster.gpu_memory_gib=25")
    (violation,) = check_memory(config, policy)
    assert violation.remedy.startswith("Together these make it fit: ")
    config = configured(recipe, policy, "allocation_mode=vllm:d4+archon:d1", "cluster.gpu_memory_gib=4")
    (violation,) = check_memory(config, policy)
    assert violation.remedy.startswith("No key alone and not all together make it fit (with ")


def test_an_engine_that_could_not_hold_one_sequence_is_refused(models):
    words = ["cluster.gpu_memory_gib=79", "rollout.gpu_memory_utilization=0.2"]
    config = configured("qwen3-8b-telecom", models["qwen3-8b"], *words)
    (violation,) = check_memory(config, models["qwen3-8b"])
    assert "the engine of vllm:d4" in violation.problem and "rollout.gpu_memory_utilization=0.7" in violation.remedy
    assert violation.key == "rollout.gpu_memory_utilization" and violation.value == "0.2"


def test_a_cache_too_small_for_one_sequence_is_told_with_the_figure_that_would_do(models, capsys, monkeypatch):
    """On a CPU its size is a key: 28 layers x 2 x 8 heads x 128 x 2 bytes are 112 KiB a token."""
    from tau2_lightning.run import plan_time

    monkeypatch.setattr(plan_time, "SECONDS", 0.02)
    monkeypatch.setattr("tau2_lightning.run.device_memory.known_memory", lambda *_: 200 * GIB)
    words = [
        "domain=telecom",
        "econfig.solo_mode=true",
        "trainer.accelerator=cpu",
        f"actor.path={models['qwen3-1.7b']}",
    ]
    words += ["mode=plan", "actor.dtype=bfloat16", "gconfig.max_tokens=16384", "gconfig.max_new_tokens=512"]
    assert train.main([*words, "rollout.kv_cache_gib=0.5"]) == 2
    told = capsys.readouterr().out
    sequence = "the engine's cache has rollout.kv_cache_gib=0.5 GiB, and needs the cache of one sequence"
    assert f"DOES NOT FIT: {sequence} of gconfig.max_tokens 1.8" in told
    (line,) = [line for line in told.splitlines() if line.startswith("would not start here")]
    assert line.startswith(f"would not start here: rollout.kv_cache_gib='0.5': {sequence}")
    assert "One of these makes it fit: rollout.kv_cache_gib=1.8 (" in line and "gconfig.max_tokens=4608 (" in line
    for mended in ("rollout.kv_cache_gib=1.8", "gconfig.max_tokens=4608"):
        assert train.main([*words, "rollout.kv_cache_gib=0.5", mended]) == 0, capsys.readouterr().out


def test_layers_with_a_window_keep_that_many_tokens():
    from transformers import Gemma3TextConfig

    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 256, "num_hidden_layers": 6}
    model = Gemma3TextConfig(sliding_window=512, layer_types=kinds, **sizes)
    assert sequence_cache(model, "bfloat16", 10_000) == (5 * 512 + 10_000) * 2 * 256 * 2
    assert sequence_cache(model, "bfloat16", 300) == 6 * 300 * 2 * 256 * 2


def test_memory_that_is_not_known_refuses_nothing(models, capsys):
    words = ["experiment=qwen3-8b-telecom", "mode=plan", f"actor.path={models['qwen3-8b']}"]
    assert train.main([*words, "allocation_mode=vllm:d4+archon:d1"]) == 0
    assert "not known here: set cluster.gpu_memory_gib" in capsys.readouterr().out


def test_a_sleeping_engine_makes_room(models):
    def needed(*words: str) -> float:
        (one,) = devices_of("qwen3-1.7b-80gb", models["qwen3-1.7b"], "cluster.gpu_memory_gib=79", *words)
        return one.needed / GIB

    assert needed() < 79 < needed("rollout.sleep_level=0")
    config = configured("qwen3-1.7b-80gb", models["qwen3-1.7b"], "cluster.gpu_memory_gib=79", "rollout.sleep_level=0")
    (violation,) = check_memory(config, models["qwen3-1.7b"])
    assert "rollout.sleep_level=null (" in violation.remedy


def test_the_start_refuses_a_folder_that_only_describes_a_model(models, capsys):
    words = ["domain=telecom", "econfig.solo_mode=true", f"actor.path={models['qwen3-8b']}"]
    assert train.main(words) == 2
    assert "holds no weights" in capsys.readouterr().err


def test_the_disk_of_checkpoints(models):
    config = configured("qwen3-8b-telecom", models["qwen3-8b"])
    disk = disk_of(config, models["qwen3-8b"])
    assert disk is not None and disk.kept == 5
    assert disk.checkpoint == pytest.approx(12 * 8.19e9, rel=0.01) and disk.export == pytest.approx(16.4e9, rel=0.01)
    lean = disk_of(changed(config, "actor.optimizer.type", "adam_8bit"), models["qwen3-8b"])
    assert lean is not None and lean.checkpoint == pytest.approx(6.03 * 8.19e9, rel=0.01)
    lora = configured("qwen3-4b-lora-24gb", models["qwen3-4b"])
    adapters = disk_of(lora, models["qwen3-4b"])
    assert adapters is not None and adapters.checkpoint < 1e9 < adapters.export


def test_the_work_of_a_step(models):
    """512 rows of 15,692 tokens share 10,000: 6 + 2 + 2 FLOP for each weight and token, and attention."""
    from tau2_lightning.policy.loading import load_model_config

    config = configured("qwen3-8b-telecom", models["qwen3-8b"])
    work = work_of(config, models["qwen3-8b"], load_model_config(models["qwen3-8b"]))
    assert work.rows == 512 and work.length == 10_000 + 0.25 * 22_768
    unique = 10_000 + 512 * 5_692
    assert work.passes == pytest.approx(10 * 7.6e9 * unique, rel=0.35)
    assert work.sampled == pytest.approx(0.3 * 512 * 15_692, rel=1e-6)


def test_minutes_are_measured_where_the_device_is(models, capsys, monkeypatch):
    from tau2_lightning.run import plan_time

    monkeypatch.setattr(plan_time, "SECONDS", 0.02)
    words = ["domain=telecom", "econfig.solo_mode=true", "mode=plan", "trainer.accelerator=cpu"]
    assert train.main([*words, f"actor.path={models['qwen3-1.7b']}", "rollout.kv_cache_gib=4"]) in (0, 2)
    told = capsys.readouterr().out
    time = r"[\d.,]+ (minutes|hours|days)"
    assert re.search(rf"about {time} = {time} of rollouts \+ {time} of training \(measured now on", told)
    assert "all processes of this machine" in told


@pytest.mark.parametrize(("row", "most"), [(0.1, 4), (1e-4, 256)])
def test_a_slow_processor_is_measured_with_few_rows(row, most, monkeypatch):
    """One that computes bfloat16 in software takes half a minute for 256 rows."""
    from tau2_lightning.run import plan_time

    timed: list[int] = []

    def seconds(work, device):
        timed.append(work().shape[0])
        return row * timed[-1]

    monkeypatch.setattr(plan_time, "_seconds", seconds)
    model = SimpleNamespace(hidden_size=16, intermediate_size=48)
    rates = plan_time.measured(model, "cpu", "bf16")
    assert rates.flops == pytest.approx(2 * 16 * 48 / row) and max(timed[:-1]) == most


def test_a_validation_needs_weights_and_the_engine_only(models, capsys):
    words = ["mode=validate", "cluster.gpu_memory_gib=79"]
    trainer, engine = reversed(devices_of("qwen3-8b-telecom", models["qwen3-8b"], *words))
    rank = trainer.trainer
    assert rank is not None and engine.engine is not None
    assert rank.weights == pytest.approx(8.19e9, rel=0.01)
    assert rank.gradients == rank.optimizer == rank.activations == rank.prefix == rank.reference == 0
    assert rank.total < rank.weights + rank.gathered + 8 * GIB
    assert train.main(["experiment=qwen3-8b-telecom", "mode=plan", f"actor.path={models['qwen3-8b']}", *words]) == 0
    told = capsys.readouterr().out
    assert "log-probs of the trainer: " in told and "for the dialogues of the validation" in told
    assert "PFLOP" not in told and "activations of micro-batches" not in told and "for a checkpoint" not in told
    assert "the validation: 160 rows of about" in told


def test_one_gpu_validates_what_it_cannot_train(models):
    words = ["allocation_mode=vllm:d4+archon:d1", "cluster.gpu_memory_gib=79"]
    config = configured("qwen3-8b-telecom", models["qwen3-8b"], *words)
    assert list(check_memory(config, models["qwen3-8b"]))
    assert list(check_memory(changed(config, "mode", "validate"), models["qwen3-8b"])) == []
