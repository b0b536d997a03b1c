"""The proxy's command says what is wrong with its policy before it starts an engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tau2_lightning import serve as proxy_main
from tau2_lightning.config.schema import RunConfig


def test_a_policy_that_the_hub_does_not_give(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(proxy_main, "serve", lambda *_: pytest.fail("it went on"))
    assert proxy_main.main(["domain=mock", "actor.path=owner/no-such-policy"]) == 2
    assert "actor.path='owner/no-such-policy': cannot be had from the hub" in capsys.readouterr().err


def test_with_a_running_engine_no_weights_are_fetched(monkeypatch: pytest.MonkeyPatch):
    served: list[Path] = []

    async def serve(config: RunConfig, policy: Path) -> None:
        served.append(policy)

    monkeypatch.setattr(proxy_main, "serve", serve)
    words = ["domain=mock", "actor.path=owner/no-such-policy", "rollout.engine_urls=['http://engine:8000']"]
    assert proxy_main.main(words) == 0
    assert served == [Path("owner/no-such-policy")]
