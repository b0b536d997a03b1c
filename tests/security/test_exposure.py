"""Nothing listens beyond this machine unless the configuration says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning import serve, train
from tau2_lightning.policy.tiny import build_tiny_policy
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exposure_rules import check_listening, is_loopback

BEYOND = ["0.0.0.0", "::", "10.0.0.5", "trainer.example.org", "", "127.0.0.1.example.org", "169.254.1.1"]
HERE = ["127.0.0.1", "127.0.0.2", "::1", "localhost"]


@pytest.mark.parametrize("host", BEYOND)
@pytest.mark.parametrize("mode", ["plan", "train"])
def test_plain_http_beyond_this_machine_is_refused(
    host: str, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(train, "run", lambda _: pytest.fail("it started"))
    assert train.main(["domain=mock", "logger=csv", f"mode={mode}", f"rollout.host='{host}'"]) == 2
    both = capsys.readouterr()
    assert "rollout.host" in both.out + both.err and "plain_http_beyond_loopback=true" in both.out + both.err


@pytest.mark.parametrize("host", BEYOND)
def test_serve_refuses_it_too(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serve, "serve", lambda *_: pytest.fail("it went on"))
    policy = build_tiny_policy(tmp_path / "policy", ["Phones, plans and bills. " * 20], vocab_size=320)
    words = [
        f"actor.path={policy}",
        "actor=tiny",
        "rollout.engine_urls=['http://engine:8000']",
        f"rollout.host='{host}'",
    ]
    assert serve.main(words) == 2
    assert "rollout.host" in capsys.readouterr().err


@pytest.mark.parametrize("host", HERE)
def test_this_machine_is_open_without_a_word(host: str) -> None:
    assert is_loopback(host) and not list(check_listening(load_config([f"rollout.host='{host}'"], check=False)))


@pytest.mark.parametrize("host", BEYOND[:4])
def test_a_stated_private_network_is_taken(host: str) -> None:
    words = ["domain=mock", f"rollout.host='{host}'", "rollout.plain_http_beyond_loopback=true"]
    assert not is_loopback(host) and not list(check_listening(load_config(words, check=False)))
