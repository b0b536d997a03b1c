"""Injects one fault into a run, checks what the run does, and resumes it: a row of the table of faults."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.programs import Start, spawned

from .faults import EVERY, STEPS, Fault
from .record import differences, total
from .runs import Run

# Two epochs, a validation after each.
LENGTH = (
    f"train_dataset.batches_per_epoch={STEPS // 2}", "trainer.max_epochs=2", "trainer.limit_val_batches=1",
    "trainer.validate_every_n_epochs=1", "trainer.validate_before=false", "trainer.validate_after=false",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What was seen: ``code`` of the injured start, ``seconds`` from the fault to the end of that start (or of the run,
    where it went on), ``lost`` completed steps that were made again."""

    fault: Fault
    code: int
    seconds: float
    lost: int

    def line(self) -> str:
        """The row in Markdown."""
        did = "goes on" if self.code == 0 else f"ends with exit code {self.code}, resumes"
        cells = (self.fault.name, self.fault.phase, did, f"{self.seconds:.1f}", self.fault.loses)
        return "| " + " | ".join(cells) + " |"


def inject(fault: Fault, run: Run, undisturbed: Path | None = None) -> Row:
    """Injure ``run`` as ``fault`` says; AssertionError where the run does something else than is stated.

    After an end the same command with ``ckpt_path=last`` must complete the run: every step once, except for those that
    are lost, with the weights and metrics of the run in ``undisturbed``. Nothing of the run is left, also where it
    fails.
    """
    try:
        row = _injected(fault, run)
    finally:
        run.kill()
    if fault.counted:
        assert total(run.folder.root, fault.counted) > 0, f"{fault.counted} does not count it"
    if undisturbed is not None and fault.comparable:
        found = differences(run.folder.root, undisturbed)
        assert bool(found) != fault.same, found or "no difference"
    return row


def undisturbed(run: Run) -> Path:
    """Let ``run`` end without a fault; its folder."""
    run.start(EVERY)
    assert run.end() == 0, run.screen
    return run.folder.root


def _injected(fault: Fault, run: Run) -> Row:
    words = fault.words
    run.start(*words, hold=fault.hold)
    began = time.monotonic()
    if fault.hold:
        run.reach(fault.hold)
        began = time.monotonic()
    if fault.do is not None:
        fault.do(run)
    if fault.do is not None and not fault.hold:
        began = time.monotonic()
    code = run.end()
    seconds = time.monotonic() - began
    assert code == fault.code, f"exit code {code} instead of {fault.code}:\n{run.screen}"
    assert run.says(fault.says), f"{fault.says!r} is not said:\n{run.screen}"
    lost = 0
    if code:
        before = run.trained()
        run.start(*(word for word in words if "_timeout=" not in word), resume=True)
        assert run.end() == 0, run.screen
        first, *_ = run.trained()[len(before) :]
        lost = (before or [0])[-1] - (first - 1)
    versions = run.trained()
    assert versions[-1] == STEPS and set(versions) == set(range(1, STEPS + 1)), versions
    assert lost == fault.lost, f"{lost} steps are lost instead of {fault.lost}: {versions}\n{run.screen}"
    leftovers = [path.name for path in run.folder.checkpoints.iterdir() if path.suffix not in (".ckpt", ".damaged")]
    assert not leftovers, leftovers
    return Row(fault, code, seconds, lost)


def without_engine(policy: Path, root: Path, plant: str, launch: Start = spawned) -> Run:
    """The main job of ``policy`` in ``root`` without an engine; ``plant`` is of its first start only."""
    job = ["-m", "tests.chaos.job", str(policy), str(root)]
    return Run([*job, plant, *LENGTH], [*job, "nothing", *LENGTH], root, launch)
