"""Soaks one run in faults: hundreds of steps with a real engine, a fault about every 15 steps, and nothing may grow.

    python benchmarks/soak.py            as many steps as fit into seven minutes, a fault about every 8
    python benchmarks/soak.py --full     500 steps, a fault about every 15
    python benchmarks/soak.py --seed 2   other faults at other steps

The main job trains a tiny policy on tau2's mock domain, collecting beside training. The faults are those that a run
survives (`tests/chaos/soak.py`): its engine is killed or stopped, the run itself is stopped, a gradient is NaN, the
clock jumps, episodes raise or hang, the same run is started a second time.

The run must end by itself with exit code 0, and account for its episodes exactly: collected = trained + filtered +
excluded + stale + in flight. Memory, descriptors, threads and disk must be flat (`benchmarks/flat.py`): the lower end
of the 95 % interval of their growth over 500 steps is limited, for bytes as a fraction of the median. What a run keeps
on purpose (a line a batch in metrics and logs) is shown and not limited.

The last line is JSON: ``ratios`` and their ``aims``.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from flat import growth

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.e2e.launch_words import small_run
from tests.e2e.reference_models import ReferenceModels
from tests.programs import spawned

STEPS, EVERY = 500, 15
SHORT_MINUTES, SHORT_EVERY = 7, 8
LONGEST_SECONDS = 3 * 3600.0
SAMPLES = 4
MOST_FRACTION, MOST_NUMBER = 0.05, 2.0  # growth over 500 steps
BYTES = ("memory", "engine_memory", "disk")
NUMBERS = ("descriptors", "threads", "engine_descriptors", "engine_threads")


def words(root: Path, seed: int, *, full: bool) -> list[str]:
    """The command line of the run in ``root``."""
    limits = [] if full else [f"trainer.max_time={{minutes: {SHORT_MINUTES}}}"]
    return [
        *small_run(ReferenceModels(root / "policies"), root, epochs=1), *limits,
        "experiment_name=e", "trial_name=t", f"cache_dir={root / 'cache'}", "trainer.limit_val_batches=0",
        f"train_dataset.batches_per_epoch={STEPS}", f"gconfig.n_samples={SAMPLES}", "rollout.filter_groups=true",
        "rollout.max_head_offpolicyness=1", "rollout.retries=0", "rollout.episode_timeout=60",
        "rollout.max_fault_fraction=1", "rollout.max_restarts=1000", "rollout.keep_rollouts=20steps",
        "trainer.max_skipped_steps=100", "trainer.checkpoint_every_n_steps=10",
        "+rollout.workflow._target_=tests.chaos.soak.SoakAgent", "+callbacks.soak._target_=tests.chaos.soak.Soak",
        f"+callbacks.soak.seed={seed}", f"+callbacks.soak.every={EVERY if full else SHORT_EVERY}",
    ]  # fmt: skip


def judged(lines: list[dict[str, float]]) -> tuple[dict[str, float], dict[str, str]]:
    """Ratios and aims of what must not grow."""
    steps = [line["batch"] for line in lines]
    found = {name: growth(steps, [line[name] for line in lines], STEPS) for name in (*BYTES, *NUMBERS, "record")}
    for name, seen in found.items():
        print(seen.line(name, f"{STEPS} steps", in_bytes=name not in NUMBERS))
    ratios = {f"{name} grows": found[name].fraction for name in BYTES}
    ratios |= {f"{name} grows": found[name].low for name in NUMBERS}
    aims = {f"{name} grows": f"<= {MOST_FRACTION:g}" for name in BYTES}
    aims |= {f"{name} grows": f"<= {MOST_NUMBER:g}" for name in NUMBERS}
    return {name: round(value, 3) for name, value in ratios.items()}, aims


def accounted(counts: dict[str, Any]) -> float:
    """Collected episodes over those whose end, or whose being in flight, is known."""
    known = sum(counts.get(name, 0) for name in ("trained", "filtered", "excluded", "in_flight"))
    known += SAMPLES * counts.get("stale", 0)
    return float(counts["collected"] / known)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help=f"{STEPS} steps")
    parser.add_argument("--seed", type=int, default=1, help="of the faults and their steps")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tau2-lightning-soak-") as scratch:
        root, began = Path(scratch), time.monotonic()
        command = ["-m", "tau2_lightning.train", *words(root, options.seed, full=options.full)]
        code = spawned(command, root / "screen.txt").wait(LONGEST_SECONDS)
        run, screen = root / "e" / "t", (root / "screen.txt").read_text(errors="replace")
        if code or not (run / "soak.json").is_file():
            print(screen[-8000:], file=sys.stderr)
            return 1
        counts = json.loads((run / "soak.json").read_text())
        lines = [json.loads(line) for line in (run / "soak.jsonl").read_text().splitlines()]
    injected = counts.pop("injected")
    print(f"{counts['batches']} batches in {(time.monotonic() - began) / 60:.1f} min, ended by itself")
    print(f"{sum(injected.values())} faults: {injected}")
    print(f"episodes: {counts}")
    ratios, aims = judged(lines)
    ratios["collected over accounted for"], aims["collected over accounted for"] = accounted(counts), "1 exactly"
    print(json.dumps({"ratios": ratios, "aims": aims}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
