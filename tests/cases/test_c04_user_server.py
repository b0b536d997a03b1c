"""C4: a user server that answers 500, HTML or no choices, that hangs, refuses the key or does not know the model.

It is asked once before anything heavy; the run ends with one message, and no traceback.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.environment import use_of_models
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code
from tests.environment.broken_server import BrokenServer, broken

Serve = Callable[[str], tuple[BrokenServer, str]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Serve from a thread of its own: the command has an event loop for itself."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    open_ones = []

    def start(kind: str) -> tuple[BrokenServer, str]:
        context = broken(kind)
        made = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(10)
        open_ones.append(context)
        return made

    yield start
    for context in open_ones:
        asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The exit code of the main job up to the policy, which is the first heavy part."""

    def heavy(*_: object) -> None:
        raise AssertionError("the heavy part was begun")

    monkeypatch.setattr("tau2_lightning.run.policy.prepare_policy", heavy)

    def run(url: str, *words: str) -> int:
        config = load_config(
            [
                "domain=retail", "econfig.user=llm", "econfig.solo_mode=false", f"econfig.user_llm_base_url={url}",
                "logger=csv", "trainer.progress=off", f"output_dir={tmp_path}", *words,
            ],
            check=False,
        )  # fmt: skip
        return exit_code(lambda: train.run(config))

    return run


@pytest.mark.parametrize(
    ("kind", "code", "told"),
    [
        ("500", 1, "user: http_500: user-7b at"),
        ("html", 1, "answers, but not with a chat completion"),
        ("no_choices", 1, "user: bad_reply: user-7b at"),
        ("hang", 1, "user: timeout: user-7b at"),
        ("401", 2, "econfig.user_llm_api_key"),
        ("404", 2, "it serves: user-7b"),
    ],
)
def test_c04_it_is_found_before_anything_heavy(
    kind: str, code: int, told: str, serve: Serve, start: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    server, url = serve(kind)
    assert start(url, "econfig.user_deadline=1") == code
    shown = capsys.readouterr().err
    assert told in shown and "Traceback" not in shown and shown.count("error:") == 1
    assert server.asked == 1


def test_c04_nobody_listens(start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert start("http://127.0.0.1:9/v1", "econfig.user_llm=m") == 1
    assert "user: connection: m at http://127.0.0.1:9/v1" in capsys.readouterr().err


def test_c04_a_provider_without_its_key_is_a_wrong_configuration(
    start: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert start("null", "econfig.user_llm=openai/gpt-4.1", "econfig.user_deadline=5") == 2
    shown = capsys.readouterr().err
    assert "econfig.user_llm_api_key=None: openai/gpt-4.1 at its provider needs a key" in shown
    assert "OPENAI_API_KEY is not set" in shown
    assert "Traceback" not in shown and shown.count("error:") == 1


def test_c04_a_judge_is_asked_too(serve: Serve, start: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    (user, url), (judge, judged) = serve("fine"), serve("401")
    words = ["econfig.judge_llm=j", f"econfig.judge_llm_base_url={judged}"]
    assert start(url, *words) == 2
    assert "econfig.judge_llm_api_key" in capsys.readouterr().err and user.asked == judge.asked == 1


@pytest.mark.parametrize("kind", ["fine", "429"])
def test_c04_a_server_that_works_or_only_limits_its_rate_lets_the_run_begin(
    kind: str, serve: Serve, start: Callable[..., int]
) -> None:
    """Negative control."""
    server, url = serve(kind)
    with pytest.raises(AssertionError, match="the heavy part was begun"):
        start(url)
    assert server.asked == 1


async def test_tokens_and_dollars_are_counted_where_the_price_is_known() -> None:
    from tau2_lightning.environment.model_client import client_for
    from tau2_lightning.environment.model_endpoint import ModelEndpoint

    async with broken("fine") as (_, url):
        priced = client_for(ModelEndpoint("user", "openai/gpt-4.1", url))
        local = client_for(ModelEndpoint("user", "somebody/own-7b", url))
        before = use_of_models()
        for client in (priced, local):
            await client.ask(lambda _: {"messages": []}, lambda response: response)
        now = use_of_models()
    # gpt-4.1: 2 dollars for a million tokens read, 8 for a million written.
    assert priced.use.cost == pytest.approx(2.0 + 0.008) and local.use.cost is None
    assert now["user/cost"] - before.get("user/cost", 0.0) == pytest.approx(2.008)
    assert now["user/prompt_tokens"] - before.get("user/prompt_tokens", 0.0) == 2_000_000
