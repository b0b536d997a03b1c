"""The report at the end of a run: evaluations with intervals, seconds by phase, peak memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .evaluation import Evaluation


def print_report(
    evaluations: Sequence[tuple[str, Evaluation]],
    phases: Mapping[str, float],
    *,
    run_dir: str,
    peak_memory: int = 0,
    console: Console | None = None,
) -> None:
    """Print the named evaluations side by side, the seconds by phase and the peak memory (bytes; 0 = not known)."""
    console = console or Console()
    if evaluations:
        first = evaluations[0][1]
        table = Table(title=f"tau2 {first.domain}, split {first.split}, user: {first.summary.user}")
        table.add_column("")
        for name, _ in evaluations:
            table.add_column(name, justify="right")
        rows = [dict(evaluation.table_rows()) for _, evaluation in evaluations]
        for label in dict.fromkeys(label for row in rows for label in row):
            table.add_row(label, *(row.get(label, "") for row in rows))
        console.print(table)
    times = Table(title="seconds by phase")
    times.add_column("phase")
    times.add_column("s", justify="right")
    for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        times.add_row(name, f"{seconds:.1f}")
    times.add_row("all", f"{sum(phases.values()):.1f}", style="bold")
    console.print(times)
    if peak_memory:
        console.print(f"Peak memory, children included: {peak_memory / 2**30:.1f} GiB", highlight=False)
    console.print(f"Run folder: {run_dir}", soft_wrap=True)


def report_payload(
    evaluations: Sequence[tuple[str, Evaluation]], phases: Mapping[str, float], peak_memory: int
) -> dict[str, Any]:
    """The content of the report as a JSON-able value, for ``report.json``."""
    return {
        "evaluations": {name: evaluation.payload() for name, evaluation in evaluations},
        "seconds": dict(phases),
        "peak_memory_bytes": peak_memory,
    }
