"""Random and adversarial words: exit code 0 or 2, no traceback, in seconds; nothing is executed, no secret is shown,
and a plan says what a start does."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning import serve, sft, train
from tests.run.fuzz_words import EXECUTED, IN_VARIABLE, IN_WORD, VARIABLE, Words, quoted

SECONDS = 5.0
CALLED: list[str] = []


class Reached(BaseException):
    """What is heavy would begin here: nothing was refused."""


def reached(*_: Any, **__: Any) -> Any:
    raise Reached


async def served(*_: Any) -> None:
    raise Reached


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory. A start goes as far as it can without an engine, a warm start, a cluster or a network."""
    import tau2_lightning.datamodule  # noqa: F401

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, IN_VARIABLE)
    monkeypatch.setattr("tau2_lightning.environment.check_models", lambda _: None)
    monkeypatch.setattr("tau2_lightning.run.policy.given_policy", reached)
    monkeypatch.setattr("tau2_lightning.policy.gguf.given_policy", reached)
    monkeypatch.setattr("tau2_lightning.warm_start.make.warm_start_policy", reached)
    monkeypatch.setattr("tau2_lightning.launch.slurm.submit", reached)
    monkeypatch.setattr("tau2_lightning.launch.ray.run", reached)
    monkeypatch.setattr(serve, "serve", served)
    CALLED.clear()
    for module, name in ((os, "system"), (os, "popen"), (os, "execv"), (os, "_exit")):
        monkeypatch.setattr(module, name, lambda *_, called=name: CALLED.append(called))
    return tmp_path


class Fuzz:
    """Calls the commands as a shell does, and checks what holds for each of them."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._folder, self._capsys, self._number = folder, capsys, 0
        self.codes: Counter[tuple[str, int]] = Counter()

    def __call__(self, name: str, main: Callable[[list[str]], int], words: list[str]) -> int:
        self._number += 1
        base = ["domain=mock", "logger=csv", f"output_dir={self._folder}/out", f"cache_dir={self._folder}/cache",
                f"trial_name=t{self._number}", "trainer.accelerator=cpu"]  # fmt: skip
        given = [*base, *words]
        began = time.process_time()
        try:
            code = main(given)
        except Reached:
            code = 0
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name} {quoted(words)}: {type(error).__name__}: {error}") from error
        seconds = time.process_time() - began
        both = self._capsys.readouterr()
        shown = both.out + both.err
        self.codes[name, code] += 1
        assert code in (0, 2), (name, quoted(words), code, shown[-2000:])
        assert seconds < SECONDS, (name, quoted(words), seconds)
        assert "Traceback" not in shown, (name, quoted(words), shown[-2000:])
        assert IN_WORD not in shown and IN_VARIABLE not in shown, (name, quoted(words), shown[-2000:])
        assert CALLED == [] and not any(self._folder.rglob(EXECUTED)), (name, quoted(words))
        if code == 2:
            assert shown.count("problem") or "would not start here" in shown, (name, quoted(words), shown[-2000:])
        return code


def run(fuzz: Fuzz, seed: int, examples: int) -> None:
    drawn = Words(seed)
    fuzz("plan", train.main, ["mode=plan"])  # what the first check imports takes longer than the check
    fuzz("start", train.main, [])
    for number in range(examples):
        words = drawn.draw()
        if number % 10 == 8:
            fuzz("sft", sft.main, words)
        elif number % 10 == 9:
            fuzz("serve", serve.main, [f"actor.path={Path.cwd()}", *words])
        else:
            plan, start = fuzz("plan", train.main, ["mode=plan", *words]), fuzz("start", train.main, words)
            assert plan == start, (quoted(words), plan, start)


def test_a_few_words(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a second each: Hydra composes the configuration several times."""
    fuzz = Fuzz(folder, capsys)
    run(fuzz, seed=1, examples=40)
    assert fuzz.codes["start", 0] > 0 and fuzz.codes["start", 2] > 20, fuzz.codes


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("seed", range(2, 10))
def test_two_thousand_words(seed: int, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(Fuzz(folder, capsys), seed, examples=250)


def test_the_checks_can_fail(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: each fault of a command is found."""

    def shows(_: list[str]) -> int:
        print(f"wrong value {IN_WORD}")
        return 2

    def executes(_: list[str]) -> int:
        (folder / EXECUTED).touch()
        return 0

    def raises(_: list[str]) -> int:
        raise KeyError("x")

    for main in (shows, raises, lambda _: 1, executes):
        with pytest.raises(AssertionError):
            Fuzz(folder, capsys)("fake", main, [])
