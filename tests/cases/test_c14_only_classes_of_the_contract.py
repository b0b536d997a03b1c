"""C14: ``_target_`` makes objects of the contract only; what it names is looked at before it is called."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning import train
from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.rollout.episode.workflow import load_workflow
from tau2_lightning.run.algorithm import instantiate_algorithm
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.instantiate import instantiate_callbacks, instantiate_loggers

HERE = "tests.cases.test_c14_only_classes_of_the_contract"
OWN = "tests.run.own_parts"
called: list[str] = []


class Agent:
    """A workflow."""

    def __init__(self, turns: int = 1) -> None:
        called.append("Agent")

    async def run(self, data: Any, **_: Any) -> float:
        return 1.0


class Runs:
    """Has a method ``run`` that is no coroutine, as ``subprocess`` has a function."""

    def __init__(self, command: str = "") -> None:
        called.append("Runs")

    def run(self, data: Any, **_: Any) -> float:
        return 1.0


def makes_an_agent(command: str = "") -> Agent:
    called.append("makes_an_agent")
    return Agent()


TARGETS = [
    "os.system", "subprocess.run", "builtins.eval", "shutil.rmtree", "pathlib.Path", "subprocess.Popen", f"{HERE}.Runs",
    f"{HERE}.makes_an_agent", "os", "os..system", "os.system()", "", "importlib.import_module",
]  # fmt: skip


@pytest.fixture(autouse=True)
def traps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of these may be called; if it is, the test fails and nothing is executed."""
    import shutil
    import subprocess

    called.clear()

    def trap(name: str) -> Any:
        def call(*args: Any, **named: Any) -> Any:
            called.append(name)

        return call

    monkeypatch.setattr(os, "system", trap("os.system"))
    monkeypatch.setattr(subprocess, "run", trap("subprocess.run"))
    monkeypatch.setattr(shutil, "rmtree", trap("shutil.rmtree"))

    def refuse(config: object) -> int:
        raise AssertionError("a run was started")

    monkeypatch.setattr(train, "run", refuse)


def refused(words: list[str]) -> set[str]:
    with pytest.raises(ConfigError) as error:
        load_config(["domain=mock", "logger=csv", *words])
    return {violation.key for violation in error.value.violations}


@pytest.mark.parametrize("mode", ["train", "plan"])
@pytest.mark.parametrize("target", TARGETS)
def test_c14_a_workflow_that_is_none_is_refused_before_it_is_called(target: str, mode: str) -> None:
    word = f"rollout.workflow={{_target_: '{target}', command: 'echo executed'}}"
    assert refused([word, f"mode={mode}"]) == {"rollout.workflow._target_"}
    with pytest.raises(ConfigError, match=r"rollout\.workflow\._target_"):
        load_workflow({"_target_": target, "command": "echo executed"})
    assert called == []


@pytest.mark.parametrize("target", [one for one in TARGETS if "." in one and "()" not in one])
@pytest.mark.parametrize("section", ["callbacks", "logger"])
def test_c14_a_callback_or_logger_that_is_none_is_refused_before_it_is_called(
    section: str, target: str, tmp_path: Path
) -> None:
    word = f"+{section}.mine={{_target_: '{target}', command: 'echo executed'}}"
    assert refused([word]) == {f"{section}.mine._target_"}
    make: Any = instantiate_callbacks if section == "callbacks" else instantiate_loggers
    with pytest.raises(ConfigError):
        make(load_config(["domain=mock", "logger=csv", word], check=False), RunFolder(tmp_path))
    assert called == []


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", f"{HERE}.makes_an_agent", f"{HERE}.Agent"])
def test_c14_an_algorithm_that_is_none_is_refused_before_it_is_called(target: str) -> None:
    words = [f"algorithm._target_={target}"]
    assert refused(words) == {"algorithm._target_"}
    with pytest.raises(ConfigError, match="is no PolicyGradient"):
        instantiate_algorithm(load_config(["domain=mock", *words], check=False))
    assert called == []


@pytest.mark.parametrize(
    ("word", "key"),
    [
        ("callbacks.progress.style={{_target_: os.system, command: ls}}", "callbacks.progress.style._target_"),
        (f"+callbacks.mine={{{{_target_: {OWN}.Slow, seconds: {{inner}}}}}}", "callbacks.mine.seconds._target_"),
        (f"+callbacks.mine={{{{_target_: {OWN}.Slow, seconds: [{{inner}}]}}}}", "callbacks.mine.seconds.0._target_"),
        ("algorithm.reward_clip={inner}", "algorithm.reward_clip._target_"),
    ],
)  # fmt: skip
def test_c14_nothing_is_made_inside_an_argument(word: str, key: str) -> None:
    assert key in refused([word.format(inner="{_target_: os.system, command: ls}")])
    assert called == []


def test_c14_a_workflow_is_made_once_and_only_at_a_start() -> None:
    """Negative control."""
    word = f"rollout.workflow={{_target_: {HERE}.Agent, turns: 3}}"
    config = load_config(["domain=mock", word])
    assert called == [] and config.rollout.workflow is not None
    assert type(load_workflow(config.rollout.workflow)).__name__ == "Agent"
    assert called == ["Agent"]
    assert refused([f"rollout.workflow={{_target_: {HERE}.Agent, rounds: 3}}"]) == {"rollout.workflow._target_"}
