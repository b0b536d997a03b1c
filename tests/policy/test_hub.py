"""Models of the hub that cannot be had: one request, one error in seconds, which says where was looked."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from huggingface_hub import constants, errors

from tau2_lightning.errors import ConfigError
from tau2_lightning.policy import hub
from tau2_lightning.policy.hub import described
from tau2_lightning.policy.loading import check_policy_path, load_model_config, load_tokenizer
from tau2_lightning.policy.tiny import build_tiny_policy

NAME = "owner/not-here"


@pytest.fixture(autouse=True)
def forgets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_described", {})


def gives(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> list[str]:
    """The hub answers so; returns the list of requests."""
    asked: list[str] = []

    def download(name: str, **options: Any) -> str:
        asked.append(name)
        assert options["etag_timeout"] == hub.SECONDS
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def refusal(kind: type[Exception]) -> Exception:
    request = httpx.Request("GET", "https://hub.test")
    return kind("no\nmore", response=httpx.Response(401, request=request))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("answer", "offline", "told"),
    [
        (
            errors.LocalEntryNotFoundError("Got: ConnectError: [Errno -2] no name\nmore"),
            False,
            r"cannot be reached \(C",
        ),
        (errors.LocalEntryNotFoundError("offline"), True, "HF_HUB_OFFLINE forbids to ask"),
        (refusal(errors.RepositoryNotFoundError), False, "has no model of this name that it shows to this account"),
        (refusal(errors.GatedRepoError), False, "gives it to accounts with granted access only"),
        (OSError(28, "No space left on device"), False, r"cannot be had from .* No space left"),
    ],
)
def test_it_says_where_the_model_is_not(
    answer: Exception, offline: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    asked = gives(monkeypatch, answer)
    (violation,) = check_policy_path(NAME)
    assert violation.key == "actor.path" and violation.value == NAME
    if "reached" in told or offline:
        assert violation.problem.startswith(f"is no folder here, and is not in the cache ({constants.HF_HUB_CACHE}); ")
    with pytest.raises(ConfigError, match=told):
        described(NAME)
    assert "Hugging Face folder" in violation.remedy and f"hf download {NAME}" in violation.remedy
    for again in (check_policy_path, load_model_config, load_tokenizer):
        with contextlib.suppress(ConfigError):
            again(NAME)
    assert asked == [NAME], "it is asked once"


def test_the_checks_read_what_was_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = gives(monkeypatch, build_tiny_policy(tmp_path / "snapshot", ["Phones and bills. " * 20], vocab_size=320))
    assert check_policy_path(NAME) == []
    assert load_model_config(NAME).model_type == "qwen3" and load_tokenizer(NAME).chat_template
    assert asked == [NAME]


def test_a_plan_of_an_unreachable_hub_ends_at_once() -> None:
    """A real request to an address where nobody answers."""
    with socket.socket() as taken:  # bound and not listening: the port is refused, and nobody else gets it
        taken.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
        variables = {"HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_ENDPOINT": endpoint}
        started = SimpleNamespace(cpu=os.times().children_user, wall=time.monotonic())
        done = subprocess.run(
            [sys.executable, "-m", "tau2_lightning.train", "mode=plan", f"actor.path={NAME}"],
            env={**os.environ, **variables}, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("would not start here")]
    assert f"actor.path='{NAME}': is no folder here" in line and f"{endpoint} cannot be reached" in line
    assert "Retry" not in done.stdout + done.stderr
    assert time.monotonic() - started.wall < 120 and os.times().children_user - started.cpu < 40
