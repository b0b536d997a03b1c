"""Measures what each part of the recipe is worth: short runs of `experiment=learn`, each with one change.

    python benchmarks/ablations.py                two variants, 2 steps from a short warm start: a trial, not a result
    python benchmarks/ablations.py --full         all variants, 15 steps each from the recipe's warm start
    python benchmarks/ablations.py --full --only gspo samples-4

Each variant is one seed in its own process (``learning_seed.py``), so one figure is worth about +-.08 to +-.11. The
record of a variant is ``<folder>/<variant>.json``; a variant that has one does not run again. The learning rate falls
over these fewer steps, so the figures are not those of the first steps of a longer run. The last line is JSON: each
variant's sampled pass^1 after training over the recipe's. There are no aims.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import learning_report as tables
from learning import SHORT

HERE = Path(__file__).parent
RECIPE = "recipe"
VARIANTS: dict[str, tuple[str, ...]] = {
    RECIPE: (),
    "filter-off": ("rollout.filter_groups=false",),
    "no-warm-start": ("warm_start.steps=0",),
    "async": ("rollout.max_head_offpolicyness=2", "algorithm.proximal=recompute"),
    "dr_grpo": ("algorithm=dr_grpo", "algorithm.std_level=none"),  # the recipe's own level would win otherwise
    "gspo": ("algorithm=gspo",),
    "samples-4": ("gconfig.n_samples=4",),
    "samples-8": ("gconfig.n_samples=8",),
    "no-transfer-penalty": ("econfig.transfer_penalty=0",),
    "no-price-on-length": ("algorithm.excess_length_price=0",),
}
SHORT_STEPS = (*SHORT, "train_dataset.batches_per_epoch=2")
FULL = ("trainer.max_epochs=3", "train_dataset.batches_per_epoch=5", "trainer.validate_every_n_epochs=0")


def train(name: str, words: list[str], target: Path) -> None:
    """Run one variant in a child process."""
    own = ["experiment=learn", f"trial_name={name}", f"output_dir={target.parent}", *words]
    command = [sys.executable, str(HERE / "learning_seed.py"), "--splits", "test", str(target), *own]
    subprocess.run(command, check=True)


def row(name: str, record: dict[str, Any]) -> str:
    """Return one Markdown row: a variant before and after training, and the cost of its steps."""
    cells = []
    for greedy in (False, True):
        for when in ("before", "after"):
            played = tables.outcomes(tables.select(record, when, "test", greedy=greedy))
            cells.append(tables.show(tables.pooled([played], tables.hat(1))))
    after = tables.outcomes(tables.select(record, "after", "test", greedy=False))
    cells.append(tables.show(tables.pooled([after], tables.plain(tables.transferred))))
    cells.append(f"{tables.malformed(after):.4f}")
    steps = record["steps"]
    useful = fmean(step["groups/kept"] / max(1.0, step["groups/collected"]) for step in steps)
    cells += [f"{useful:.2f}", f"{record['wall']['training'] / max(1, len(steps)):.1f}"]
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="all variants at a length that says something")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="these variants")
    parser.add_argument("--folder", type=Path, default=Path("outputs/ablations"))
    parser.add_argument("words", nargs="*", help="overrides of the configuration, for every variant")
    arguments = parser.parse_args()
    folder = arguments.folder / ("" if arguments.full else "short")
    folder.mkdir(parents=True, exist_ok=True)
    length = FULL if arguments.full else SHORT_STEPS
    names = arguments.only or (list(VARIANTS) if arguments.full else [RECIPE, "filter-off"])
    records = {}
    for name in names:
        target = folder / f"{name}.json"
        if not target.is_file():
            train(name, [*length, *VARIANTS[name], *arguments.words], target)
        records[name] = json.loads(target.read_text())
    head = ["variant", "sampled before", "after", "greedy before", "after", "unasked transfers", "malformed a call",
            "groups kept", "seconds a step"]  # fmt: skip
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for name, record in records.items():
        print(row(name, record))
    after = {
        name: tables.pooled(
            [tables.outcomes(tables.select(record, "after", "test", greedy=False))], tables.hat(1)
        ).value
        for name, record in records.items()
    }  # fmt: skip
    base = after.get(RECIPE, float("nan"))
    ratios = {name: value / base for name, value in after.items() if base and base == base}
    print(json.dumps({"ratios": ratios, "aims": {}}))


if __name__ == "__main__":
    main()
