"""GRPO on LoRA adapters with a real engine: only adapters are sent, and the guard notices if they are not sent."""

from __future__ import annotations

import csv
import json
from collections.abc import AsyncIterator
from pathlib import Path

import lightning as L
import pytest
import pytest_asyncio
import torch
from safetensors.torch import load_file

from tau2_lightning import train
from tau2_lightning.callbacks import weight_sync
from tau2_lightning.callbacks.seams import data_of
from tau2_lightning.rollout.engine.pool import EnginePool
from tests.e2e.reference_models import MAX_MODEL_LEN, ReferenceModels, engine_settings

pytestmark = pytest.mark.e2e


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lora_pool(reference: ReferenceModels, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EnginePool]:
    """An engine that takes adapters."""
    log_path = tmp_path_factory.mktemp("lora") / "engine.log"
    async with EnginePool(engine_settings(reference, log_path, lora_rank=8)) as pool:
        yield pool


@pytest.fixture(scope="module")
def words(lora_pool: EnginePool, reference: ReferenceModels) -> list[str]:
    return [
        f"rollout.engine_urls=['{lora_pool.members[0].client.url}']",
        f"rollout.engine_api_key={lora_pool.settings.api_key}",
        "actor=tiny", f"actor.path={reference.folders['A']}", "trainer.accelerator=cpu",
        f"gconfig.max_tokens={MAX_MODEL_LEN}", "gconfig.n_samples=4", "gconfig.max_new_tokens=24",
        "econfig.policy=ticket", "econfig.max_steps=8",
        "train_dataset.batch_size=2", "train_dataset.batches_per_epoch=2",
        # Any reward of a random policy must change the adapters.
        "algorithm.reward_bias=-0.5", "algorithm.mean_level=none", "algorithm.std_level=none",
        "algorithm.kl_ctl=0.1", "rollout.filter_groups=false",
        "actor.ppo_n_minibatches=1", "actor.optimizer.lr=2e-2", "actor.optimizer.warmup_steps=0",
        "actor.lora.r=8", "actor.lora.alpha=16",
        "trainer.max_epochs=1", "trainer.validate_before=false", "trainer.validate_after=false",
        "trainer.progress=off", "logger=csv", "trainer.async_save=true",
    ]  # fmt: skip


def test_two_steps_travel_as_adapters_and_the_guard_passes(
    words: list[str], reference: ReferenceModels, tmp_path: Path
) -> None:
    assert train.main([*words, f"output_dir={tmp_path}", "experiment_name=e2e", "trial_name=lora"]) == 0
    run = tmp_path / "e2e" / "lora"
    with (run / "metrics" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    guard = [float(row["sync/logp_difference/max"]) for row in rows if row.get("sync/logp_difference/max")]
    # A running engine also gets the adapter that training starts from: that sync belongs to no step of the record.
    assert len(guard) == 2 and max(guard) < 1e-3
    steps = [row for row in rows if row.get("loss/mean")]
    assert all(abs(float(row["ratio/max"]) - 1) < 1e-4 and float(row["optim/grad_norm"]) > 0 for row in steps)

    folders = list((run / "adapter").iterdir())
    assert [folder.name for folder in folders] == ["v2"]  # earlier ones are removed
    adapter = load_file(folders[0] / "adapter_model.safetensors")
    assert any(bool(tensor.abs().max() > 1e-3) for name, tensor in adapter.items() if "lora_B" in name)
    payload = (folders[0] / "adapter_model.safetensors").stat().st_size
    whole = (reference.folders["A"] / "model.safetensors").stat().st_size
    assert payload < whole / 3
    assert json.loads((folders[0] / "adapter_config.json").read_text())["r"] == 8

    base, merged = (load_file(folder / "model.safetensors") for folder in (reference.folders["A"], run / "policy"))
    assert any(not torch.equal(base[name], merged[name]) for name in base) and base.keys() == merged.keys()
    assert torch.equal(base["model.embed_tokens.weight"], merged["model.embed_tokens.weight"])
    (checkpoint,) = (run / "checkpoints").glob("*.ckpt")  # written in the background, complete at the end
    stored = sum(file.stat().st_size for file in checkpoint.iterdir())
    assert (
        3 * payload < stored < 2 * whole
    )  # adapters and AdamW's two moments; a whole checkpoint is 3 * whole and more


def test_without_adapter_sync_the_guard_fails(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def only_the_number(trainer: L.Trainer, version: int) -> dict[str, float]:
        data_of(trainer).rollouts.version = version
        return {}

    monkeypatch.setattr(weight_sync, "publish_adapter", only_the_number)
    assert train.main([*words, f"output_dir={tmp_path}", "experiment_name=e2e", "trial_name=stale"]) == 1
    assert "differ between engine and trainer" in capsys.readouterr().err


def test_merged_weights_are_the_other_way(words: list[str], tmp_path: Path) -> None:
    merged = ["actor.lora.sync=merged", "train_dataset.batches_per_epoch=1"]
    assert train.main([*words, *merged, f"output_dir={tmp_path}", "experiment_name=e2e", "trial_name=merged"]) == 0
    assert not (tmp_path / "e2e" / "merged" / "adapter").exists()
