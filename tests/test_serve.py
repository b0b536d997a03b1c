"""The proxy's command says what is wrong with its policy before it starts an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning import serve as proxy_main
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.policy.tiny import build_tiny_policy


def test_a_policy_that_the_hub_does_not_give(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proxy_main, "serve", lambda *_: pytest.fail("it went on"))
    assert proxy_main.main(["domain=mock", "actor.path=owner/no-such-policy"]) == 2
    assert "actor.path='owner/no-such-policy': is no folder here, and is not in the cache" in capsys.readouterr().err


def test_with_a_running_engine_no_weights_are_fetched(monkeypatch: pytest.MonkeyPatch):
    served: list[Path] = []

    async def serve(config: RunConfig, policy: Path) -> None:
        served.append(policy)

    monkeypatch.setattr(proxy_main, "serve", serve)
    words = ["domain=mock", "actor.path=owner/no-such-policy", "rollout.engine_urls=['http://engine:8000']"]
    assert proxy_main.main(words) == 0
    assert served == [Path("owner/no-such-policy")]


def test_words_that_the_template_does_not_know(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(proxy_main, "serve", lambda *_: pytest.fail("it went on"))
    policy = build_tiny_policy(tmp_path / "policy", ["Phones, plans and bills. " * 20], vocab_size=320)
    words = [f"actor.path={policy}", "actor=tiny", "rollout.engine_urls=['http://engine:8000']"]
    assert proxy_main.main([*words, "gconfig.chat_template_kwargs={nonsense: true}"]) == 2
    assert "gconfig.chat_template_kwargs.nonsense=True: the template of" in capsys.readouterr().err
    assert proxy_main.main([*words, "rollout.reasoning_parser=nonsense"]) == 2
    told = capsys.readouterr().err
    assert "rollout.reasoning_parser='nonsense'" in told and "Traceback" not in told
