"""Injects every fault into runs of the tiny policy and writes the table of docs/reliability.md: ``make chaos``.

    python benchmarks/chaos.py                  all faults
    python benchmarks/chaos.py "kill -9"        those whose name or phase holds one of the words
    python benchmarks/chaos.py --without-engine those that need no engine

The table is replaced when all faults are injected and every run did what is stated; otherwise what was seen is printed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tau2_lightning.policy.tiny import build_tiny_policy
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.inject import Row, inject, undisturbed, without_engine
from tests.chaos.real import REAL_FAULTS, with_engine

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- the table of make chaos -->\n", "<!-- its end -->"
HEAD = "| fault | phase | what the run did | seconds until the end | lost |\n|---|---|---|---|---|\n"


def chosen(words: Sequence[str], *, engine: bool) -> list[Fault]:
    """The faults whose key holds one of ``words``; all without words."""
    faults = [*FAULTS, *(REAL_FAULTS if engine else ())]
    return [fault for fault in faults if not words or any(word in fault.key for word in words)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("words", nargs="*", help="inject only faults whose name or phase holds one of these")
    parser.add_argument("--without-engine", action="store_true", help="leave out the faults that need a real engine")
    options = parser.parse_args()
    rows: list[Row] = []
    failed: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tau2-lightning-chaos-") as scratch:
        policy = build_tiny_policy(Path(scratch) / "policy", ["check the line status. " * 30], vocab_size=512)
        calm = undisturbed(without_engine(policy, Path(scratch) / "calm", "nothing"))
        for number, fault in enumerate(chosen(options.words, engine=not options.without_engine)):
            root = Path(scratch) / f"{number:02d}"
            run = with_engine(root) if fault.real else without_engine(policy, root, fault.plant)
            try:
                rows.append(inject(fault, run, calm))
            except Exception as error:  # noqa: BLE001 - the other faults are injected all the same
                failed.append(fault.key)
                print(f"{fault.key}: {error}", file=sys.stderr)
                if not isinstance(error, AssertionError):
                    traceback.print_exc()
            else:
                print(rows[-1].line(), flush=True)
    print(f"{len(rows)} faults, {len(failed)} not as stated, {(time.monotonic() - began) / 60:.0f} min")
    if not failed and not options.words and not options.without_engine:
        write(rows)
    return bool(failed)


def write(rows: Sequence[Row]) -> None:
    """Put the table into the page."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    table = HEAD + "".join(f"{row.line()}\n" for row in rows)
    PAGE.write_text(f"{before}{BEGIN}{table}{END}{after}")


if __name__ == "__main__":
    sys.exit(main())
