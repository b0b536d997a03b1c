"""A screen whose reader is gone, and a log on a full disk, end nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO, cast

import pytest

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.run.exit import exit_code
from tau2_lightning.telemetry.unfailing import Unfailing

NO_ROOM = Path("/dev/full")


@pytest.fixture
def broken() -> Iterator[TextIO]:
    """A pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    yield os.fdopen(writing, "w", buffering=1, closefd=False)
    os.close(writing)


def test_what_cannot_be_written_is_dropped_and_the_first_error_is_told(broken: TextIO) -> None:
    with pytest.raises(BrokenPipeError):
        broken.write("negative control\n")
    told = list[OSError]()
    stream = Unfailing(broken, told.append)
    for _ in range(2):
        assert stream.write("a line\n") == 7
        print("another", file=cast("TextIO", stream), flush=True)
    assert [type(error) for error in told] == [BrokenPipeError]
    assert stream.fileno() == broken.fileno() and not stream.isatty(), "the rest is the stream's"


def test_it_writes_again_when_there_is_room(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.symlink_to(NO_ROOM)
    with log.open("a") as full, (tmp_path / "other").open("a+") as room:
        stream = Unfailing(full)
        stream.write("lost\n")
        stream.flush()
        os.dup2(room.fileno(), full.fileno())
        stream.write("kept\n")
        stream.flush()
        room.seek(0)
        assert room.read().endswith("kept\n")


def test_without_a_screen_the_exit_code_is_that_of_the_work(broken: TextIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", broken)

    def work() -> int:
        print("a line of the run", file=sys.stderr, flush=True)
        raise InfrastructureFault("engine", "crash")

    assert exit_code(work) == 1
    assert sys.stderr is broken, "it is as it was"
