"""Refusals import neither torch nor transformers nor tau2 where nothing that the user wrote needs them, and come all at
once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.launch.devices import device_count
from tau2_lightning.policy.tiny import build_tiny_policy

HEAVY = ("torch", "transformers", "lightning", "vllm", "tau2", "litellm", "wandb")
PROGRAM = f"""
import sys
from tau2_lightning import train
code = train.main(sys.argv[1:])
print(code, *[name for name in {HEAVY!r} if name in sys.modules])
"""


@pytest.mark.parametrize(
    ("words", "keys"),
    [
        (["gconfig.bogus=1", "rollout.retries=-1"], ["gconfig.bogus", "rollout.retries"]),
        (["mode=validate", "ckpt_path=last", "gconfig.max_tokens=20"], ["ckpt_path", "gconfig.max_new_tokens"]),
        (["actor.path=no/such/folder", "rollout.host=0.0.0.0"], ["actor.path", "rollout.host"]),
        (["allocation_mode=vllm:d0+archon:d1", "trainer.max_steps=x"], ["allocation_mode", "trainer.max_steps"]),
    ],
)
def test_what_needs_no_library_is_refused_without_one(words: list[str], keys: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=300, check=True
    )
    assert done.stdout.split() == ["2"], (done.stdout, done.stderr)
    for key in keys:
        assert f"- {key}=" in done.stderr, done.stderr


def test_what_the_user_wrote_is_checked_whatever_else_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["gconfig.bogus=1", "algorithm.eps_clip=-1", "domain=[telecom,nowhere,neither]", "valid_dataset.split=no"]
    assert train.main(words) == 2
    shown = capsys.readouterr().err
    for told in ("gconfig.bogus", "algorithm.eps_clip", "nowhere", "neither", "valid_dataset.split"):
        assert told in shown, (told, shown)


def test_the_policy_is_looked_at_beside_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a sound folder: opening prompts that do not fit are said with the misspelled key, at plan and start alike."""
    policy = build_tiny_policy(tmp_path / "policy", ["Phones, plans and bills. " * 20], vocab_size=320)
    words = [f"actor.path={policy}", "rollout.bogus=1", "gconfig.max_tokens=64", "gconfig.max_new_tokens=60"]
    told = ("rollout.bogus='1'", "opening prompts take up to")
    assert train.main([*words, f"output_dir={tmp_path}"]) == 2
    start = capsys.readouterr().err
    assert all(one in start for one in told), start
    assert train.main([*words, f"output_dir={tmp_path}", "mode=plan"]) == 2
    shown = capsys.readouterr()
    assert all(one in shown.out + shown.err for one in told), shown


def test_torch_is_asked_for_devices_where_a_driver_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    assert device_count(tmp_path) == 3  # it is imported: its word counts
    monkeypatch.delitem(sys.modules, "torch")
    assert device_count(tmp_path) == 0
    (tmp_path / "nvidia0").touch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert device_count(tmp_path) == 3
