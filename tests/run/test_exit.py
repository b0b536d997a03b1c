"""Commands end with the exit code of their result, and print one line on stderr for an error."""

from __future__ import annotations

import signal

import pytest

from tau2_lightning.errors import ConfigError, InfrastructureFault, Violation
from tau2_lightning.launch.stopping import Stopped
from tau2_lightning.run.exit import exit_code


def raising(error: BaseException):
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError([Violation("a.b", 1, "is wrong", "Mend it")]), 2, "a.b=1: is wrong. Mend it"),
        (InfrastructureFault("engine", "crash"), 1, "error: InfrastructureFault: engine: crash"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Stopped(signal.SIGINT), 130, "interrupted"),
        (Stopped(signal.SIGTERM), 143, "stopped by SIGTERM"),
    ],
)
def test_codes(error: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]):
    assert exit_code(raising(error)) == code
    assert said in capsys.readouterr().err


def test_what_work_returns_is_the_code():
    assert exit_code(lambda: 0) == 0
    assert exit_code(lambda: 7) == 7


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: 1 // 0)
