"""Prints the tables of docs/lab/main_job.md from run folders: python tools/results_table.py RUN_FOLDER [...]"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def estimate(value: dict[str, Any]) -> str:
    """Format a value with its interval."""
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def main(folders: list[str]) -> None:
    """Print one table of scores and one of minutes by phase, a row for each run and evaluation."""
    reports = [(Path(folder).name, json.loads((Path(folder) / "report.json").read_text())) for folder in folders]
    print("| run | | pass^1 | pass^4 | pass^1 without transfer tasks | unasked transfers | turns | excluded |")
    print("|---|---|---|---|---|---|---|---|")
    for name, report in reports:
        for when, evaluation in report["evaluations"].items():
            s = evaluation["summary"]
            hat = s["pass_hat"]
            cells = [estimate(hat["1"]), estimate(hat["4"]) if "4" in hat else "-", estimate(s["pass_1_no_transfer"])]
            cells += [estimate(s["needless_transfer_rate"]), f"{s['mean_turns']:.1f}", str(sum(s["excluded"].values()))]
            print(f"| {name} | {when} | " + " | ".join(cells) + " |")
    phases = sorted({phase for _, report in reports for phase in report["seconds"]})
    print("\n| run | " + " | ".join(phases) + " | all | peak memory |")
    print("|---|" + "---|" * (len(phases) + 2))
    for name, report in reports:
        minutes = [report["seconds"].get(phase, 0.0) / 60 for phase in phases]
        cells = [f"{m:.1f}" for m in [*minutes, sum(minutes)]] + [f"{report['peak_memory_bytes'] / 2**30:.1f} GiB"]
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
