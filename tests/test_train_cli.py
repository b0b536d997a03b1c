"""Bad input ends the command with exit code 2 and one clear error, before anything heavy starts."""

import importlib.util

import pytest

from tau2_lightning import train


@pytest.fixture(autouse=True)
def nothing_heavy(monkeypatch):
    def refuse(config):
        raise AssertionError("a run was started")

    monkeypatch.setattr(train, "run", refuse)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["domain=nowhere"], "domain="),
        (["valid_dataset.split=dev"], "valid_dataset.split"),
        (["domain=retail", "econfig.solo_mode=true"], "econfig.solo_mode"),
        (["domain=airline"], "econfig.user_llm_base_url"),
        (["actor.path=./no/model"], "actor.path"),
        (["gconfig.n_samples=1"], "gconfig.n_samples"),
        (["train_dataset.batch_size=1", "gconfig.n_samples=3"], "train_dataset.batch_size"),
        (["gconfig.n_smaples=4"], "gconfig.n_samples"),
        (["gconfig.max_tokens=90"], "gconfig.max_new_tokens"),
        (["gconfig.max_tokens=9000"], "gconfig.max_tokens"),
        (["gconfig.top_p=0.9"], "gconfig.top_p"),
        (["algorithm.eps_clip=-1"], "eps_clip"),
        (["allocation_mode=vllm:d1+archon:t2"], "allocation_mode"),
        (["ckpt_path=no/such.ckpt"], "ckpt_path"),
        (["not an override"], "command line"),
    ],
)
def test_bad_input(words, named, capsys):
    assert train.main(words) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: ")
    assert named in shown


def test_missing_vllm(monkeypatch, capsys):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "vllm" else real(name, *a))
    assert train.main([]) == 2
    assert "tau2-lightning[cpu]" in capsys.readouterr().err


def test_secrets_stay_off_the_screen(capsys):
    secret = "sk-not-for-your-eyes"
    assert train.main([f"econfig.user_llm_api_key={secret}", "--cfg", "job"]) == 0
    assert train.main([f"econfig.user_llm_api_key={secret}", "gconfig.n_smaples=3", "domain=airline"]) == 2
    assert train.main([f"econfig.user_llm_api_key={secret}", "gconfig.n_samples=[oops"]) == 2
    both = capsys.readouterr()
    assert secret not in both.out + both.err
    assert "***" in both.out


def test_good_input_reaches_the_run():
    with pytest.raises(AssertionError, match="a run was started"):
        train.main(["domain=telecom"])
