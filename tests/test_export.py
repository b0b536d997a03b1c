"""`python -m tau2_lightning.export`: a checkpoint of any layout becomes a folder that servers load."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tau2_lightning import export
from tau2_lightning.callbacks.checkpoints import NewestCheckpoints
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.strategy import ArchonStrategy
from tau2_lightning.strategy.lora import LoRASettings
from tau2_lightning.strategy.opening import load_causal_lm
from tests.jobs import small_policy
from tests.strategy.distributed import fork
from tests.strategy.lightning_job import OtherModule, Steps
from tests.strategy.tiny import tiny_model

LORA = LoRASettings(4, 8.0)


class Trained(OtherModule):
    """Three steps from the folder ``policy_path``."""

    def __init__(self, policy: Path) -> None:
        super().__init__()
        self.policy_path = str(policy)

    def configure_model(self) -> None:
        if not hasattr(self, "policy"):
            strategy: Any = self.trainer.strategy
            self.policy = strategy.parallelize(self.policy_path)


def train(layout: str, policy: Path, root: Path, lora: LoRASettings | None = None) -> None:
    """A run in ``root`` with the checkpoint step3.ckpt; its own export is ``root``/policy."""
    spec = ParallelSpec.parse(layout)
    if spec.world > 1:  # the variables that a launcher would have set
        rank = str(torch.distributed.get_rank())
        os.environ |= {"LOCAL_RANK": rank, "NODE_RANK": "0", "WORLD_SIZE": str(spec.world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    L.seed_everything(1, verbose=False)
    folder = RunFolder(root)
    strategy = ArchonStrategy(spec, lora=lora)
    trainer = L.Trainer(
        strategy=strategy, accelerator="cpu", devices=spec.world, max_epochs=1, logger=False,
        callbacks=[NewestCheckpoints(folder, keep=2, every_n_epochs=1)], enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, default_root_dir=root,
    )  # fmt: skip
    trainer.fit(Trained(policy), DataLoader(Steps(), batch_size=None))
    strategy.save_pretrained(folder.policy, AutoTokenizer.from_pretrained(policy))


def with_tokenizer(model: Any, tokenizer: Path, folder: Path) -> Path:
    """A policy folder with ``model`` and the tokenizer of another one."""
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    GenerationConfig(eos_token_id=[1, 2], temperature=0.7, do_sample=True).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


@pytest.fixture(scope="module")
def base(tokenizer: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = tiny_model(tied=True)
    return with_tokenizer(model, tokenizer, tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run") / "t"
    train("d1", base, root)
    return root


def done(capsys: pytest.CaptureFixture[str], *words: str) -> Path:
    assert export.main([str(word) for word in words]) == 0, capsys.readouterr().err
    return Path(capsys.readouterr().out.strip())


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    assert export.main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def logits(folder: Path, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        found: torch.Tensor = model(torch.arange(5, 60)[None]).logits
    return found


def equal(one: Path, other: Path) -> None:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name, tensor in b.items():
        assert torch.equal(a[name], tensor), name


def test_it_loads_in_transformers_with_the_logits_of_the_trained_model(
    run: Path, base: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    checkpoint = run / "checkpoints" / "step3.ckpt"
    made = done(capsys, str(checkpoint), f"out={tmp_path / 'full'}", "dtype=float32")
    assert torch.equal(logits(made), logits(run / "policy")) and not torch.equal(logits(made), logits(base))
    equal(made, run / "policy")
    assert AutoTokenizer.from_pretrained(made).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    assert GenerationConfig.from_pretrained(made).eos_token_id == [1, 2]
    half = done(capsys, str(checkpoint), f"out={tmp_path / 'half'}", "max_shard_size=40KB")
    assert len(list(half.glob("model-*.safetensors"))) > 1 and AutoConfig.from_pretrained(half).dtype == torch.bfloat16
    assert torch.equal(logits(half, torch.bfloat16), logits(made, torch.bfloat16))
    assert not torch.equal(logits(half), logits(made)), "the files hold bfloat16"


def test_where_it_is_written_and_what_names_a_checkpoint(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(run, tmp_path / "t"))
    made = done(capsys, str(root))
    assert made == root / "exports" / "step3" and (made / "config.json").is_file()
    assert "exists already" in refused(capsys, root)
    shutil.copytree(root / "checkpoints" / "step3.ckpt", root / "checkpoints" / "step9.ckpt")
    os.utime(root / "checkpoints" / "step9.ckpt")
    (root / "best.json").write_text(json.dumps({"checkpoint": "step3.ckpt", "pass^1": 0.5}))
    assert done(capsys, str(root)) == root / "exports" / "step9", "the newest"
    assert "step3" in refused(capsys, root / "best.json"), "the best, which is there already"
    elsewhere = Path(shutil.copytree(root / "checkpoints" / "step3.ckpt", tmp_path / "kept.ckpt"))
    assert done(capsys, str(elsewhere)) == tmp_path / "kept-exported"


@pytest.mark.parametrize("layout", ["d2", "t2", pytest.param("d2p2", marks=pytest.mark.slow)])
def test_any_layout_is_exported_by_one_process(
    layout: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fork(ParallelSpec.parse(layout).world, train, layout, base, tmp_path / "t")
    made = done(capsys, str(tmp_path / "t" / "checkpoints" / "step3.ckpt"), "dtype=float32")
    equal(made, tmp_path / "t" / "policy")
    assert not torch.equal(logits(made), logits(base))


def test_experts_have_the_names_of_published_folders(
    tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = with_tokenizer(tiny_model(family="qwen3_moe"), tokenizer, tmp_path / "moe")
    train("d1", base, tmp_path / "t")
    made = done(capsys, str(tmp_path / "t"), "dtype=float32")
    equal(made, tmp_path / "t" / "policy")
    assert "model.layers.0.mlp.experts.3.up_proj.weight" in load_file(made / "model.safetensors")


@pytest.mark.parametrize("layout", ["d1", "t2"])
def test_adapters_are_merged_or_written_alone(
    layout: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel

    root = tmp_path / "t"
    fork(ParallelSpec.parse(layout).world, train, layout, base, root, LORA)
    made = done(capsys, str(root), "dtype=float32")
    a, b = (load_file(folder / "model.safetensors") for folder in (made, root / "policy"))
    assert a.keys() == b.keys()
    for name, tensor in b.items():
        assert float((a[name] - tensor).abs().max()) < 1e-6, name
    equal_adapters = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (made, root / "policy"))
    one, other = equal_adapters
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in other)
    alone = done(capsys, str(root), f"out={tmp_path / 'alone'}", "merge_adapters=false")
    assert sorted(path.name for path in alone.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    peft = PeftModel.from_pretrained(load_causal_lm(base), alone).eval()
    with torch.no_grad():
        found = peft(torch.arange(5, 60)[None]).logits
    assert float((found - logits(made)).abs().max()) < 1e-5
    assert float((found - logits(base)).abs().max()) > 1e-4, "the adapters do nothing"


def test_another_base_model_is_refused_for_adapters(
    base: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train("d1", base, tmp_path / "t", LORA)
    model = tiny_model(tied=True)
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight.mul_(1.2)
    other = with_tokenizer(model, tokenizer, tmp_path / "other")
    out = tmp_path / "out"
    assert "trained on a base model of weight norm" in refused(capsys, tmp_path / "t", f"base={other}", f"out={out}")
    assert not out.exists() and not out.with_name("out.partial").exists()


def test_the_base_may_have_moved(
    run: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(shutil.copytree(run, tmp_path / "t"))
    moved = base.with_name("moved")
    base.rename(moved)
    try:
        assert done(capsys, str(root), "dtype=float32"), "the run's own export has configuration and tokenizer, too"
        shutil.rmtree(root / "policy")
        told = refused(capsys, root, f"out={tmp_path / 'o'}")
        assert "is not there any more" in told and "base=FOLDER" in told
        made = done(capsys, str(root), f"base={moved}", f"out={tmp_path / 'o'}", "dtype=float32")
        equal(made, run / "policy")
    finally:
        moved.rename(base)


def test_what_cannot_be_exported_is_refused_with_its_reason(
    run: Path, base: Path, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = Path(shutil.copytree(run / "checkpoints" / "step3.ckpt", tmp_path / "step3.ckpt"))
    (tmp_path / "empty").mkdir()
    assert "no checkpoint is named" in refused(capsys)
    assert "is not one checkpoint" in refused(capsys, checkpoint, checkpoint)
    assert "no such folder" in refused(capsys, tmp_path / "none.ckpt")
    assert "it has no meta.pt" in refused(capsys, tmp_path / "empty")
    assert "is a Hugging Face folder already" in refused(capsys, base)
    told = refused(capsys, checkpoint, "dtype=int8", "shard=5", "merge_adapters=maybe", "max_shard_size=many")
    assert all(key in told for key in ("dtype='int8'", "shard='5'", "merge_adapters='maybe'", "max_shard_size='many'"))
    assert "holds no adapters" in refused(capsys, checkpoint, "merge_adapters=false")
    assert "Give a Hugging Face model folder" in refused(capsys, checkpoint, f"base={tmp_path / 'empty'}")
    larger = with_tokenizer(tiny_model(tied=True, layers=5), tokenizer, tmp_path / "larger")
    assert "num_hidden_layers=4" in refused(capsys, checkpoint, f"base={larger}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("1")
    assert "exists already" in refused(capsys, checkpoint, f"out={tmp_path / 'full'}")
    (shard,) = checkpoint.glob("*.distcp")
    with shard.open("r+b") as file:
        file.seek(shard.stat().st_size // 2)
        file.write(b"torn")
    assert "is damaged" in refused(capsys, checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full", "larger", "step3.ckpt"]
    assert export.main(["--help"]) == 0 and "merge_adapters" in capsys.readouterr().out
