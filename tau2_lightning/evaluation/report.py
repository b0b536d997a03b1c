"""The report at the end of a run, and the command that compares two evaluations.

``python -m tau2_lightning.evaluation.report A B`` compares two runs (their folders, ``report.json`` or results files):
pass^k with intervals and the difference. It refuses evaluations with different stamps.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from rich.console import Console
from rich.table import Table

from tau2_lightning.errors import ConfigError

from .comparison import ANYWAY, compare, difference
from .intervals import Estimate
from .macro import macro_pass_hat
from .recorded import PREFERRED, Recorded, read_recorded
from .stamp import differences

if TYPE_CHECKING:
    from .evaluation import Evaluation

Named: TypeAlias = "Sequence[tuple[str, Evaluation]]"


def print_report(
    evaluations: Named,
    phases: Mapping[str, float],
    *,
    run_dir: str,
    peak_memory: int = 0,
    models: Mapping[str, float] | None = None,
    notices: Sequence[str] = (),
    console: Console | None = None,
) -> None:
    """Print the named evaluations side by side, a table for each domain, the mean over domains, the seconds by phase,
    the peak memory (bytes; 0 = not known), the use of ``models`` (`environment.use_of_models`) and the notices of the
    configuration.
    """
    console = console or Console()
    by_domain = _by_domain(evaluations)
    for own in by_domain.values():
        console.print(_domain_table(own))
        for line in _stamp_lines(own):
            console.print(line, highlight=False, soft_wrap=True)
    if len(by_domain) > 1:
        console.print(_macro_table(evaluations))
    times = Table(title="seconds by phase")
    times.add_column("phase")
    times.add_column("s", justify="right")
    for name, seconds in sorted(phases.items(), key=lambda item: -item[1]):
        times.add_row(name, f"{seconds:.1f}")
    times.add_row("all", f"{sum(phases.values()):.1f}", style="bold")
    console.print(times)
    if peak_memory:
        console.print(f"Peak memory, children included: {peak_memory / 2**30:.1f} GiB", highlight=False)
    for line in _model_lines(models or {}):
        console.print(line, highlight=False, soft_wrap=True)
    for notice in notices:
        console.print(f"notice: {notice}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"Run folder: {run_dir}", soft_wrap=True)
    console.print(f"Every episode and the curves: python -m tau2_lightning.report {run_dir}", soft_wrap=True)


def report_payload(
    evaluations: Named,
    phases: Mapping[str, float],
    peak_memory: int,
    *,
    models: Mapping[str, float] | None = None,
    notices: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The content of the report as a JSON-able value, for ``report.json``. With several domains an evaluation's name
    ends with ``/<domain>``.
    """
    several = len(_by_domain(evaluations)) > 1
    return {
        "evaluations": {
            f"{name}/{evaluation.domain}" if several else name: evaluation.payload() for name, evaluation in evaluations
        },
        "seconds": dict(phases),
        "peak_memory_bytes": peak_memory,
        "models": dict(models or {}),
        "notices": list(notices),
        "warnings": list(warnings),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Compare two evaluations. Returns the exit code: 0 compared, 2 refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tau2_lightning.evaluation.report",
        description="Compare two evaluations: pass^k with 95% intervals and their difference, paired by task.",
    )
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="a run's folder, its report.json, or a file of its results/")
    parser.add_argument(
        "--evaluation",
        choices=PREFERRED,
        help="which one of a report: before or after training, or score (mode=validate); default: after, score, before",
    )
    parser.add_argument(ANYWAY, action="store_true", help="compare although the stamps differ; the table says so")
    options = parser.parse_args(argv)
    try:
        sides = [read_recorded(path, options.evaluation) for path in (options.A, options.B)]
        table = compare(sides[0], sides[1], anyway=options.anyway)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    Console().print(table)
    return 0


def _by_domain(evaluations: Named) -> dict[str, list[tuple[str, Evaluation]]]:
    found: dict[str, list[tuple[str, Evaluation]]] = {}
    for name, evaluation in evaluations:
        found.setdefault(evaluation.domain, []).append((name, evaluation))
    return found


def _domain_table(evaluations: Named) -> Table:
    first = evaluations[0][1]
    table = Table(title=f"tau2 {first.domain}, split {first.split}, user: {first.summary.user}")
    table.add_column("")
    rows = {name: dict(evaluation.table_rows()) for name, evaluation in evaluations}
    if changes := _changes(dict(evaluations)):
        rows["change"] = changes
    for name in rows:
        table.add_column(name, justify="right")
    for label in dict.fromkeys(label for row in rows.values() for label in row):
        table.add_row(label, *(row.get(label, "") for row in rows.values()))
    return table


def _changes(evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
    """pass^k after training less that before, paired by task; empty unless both are there and of one world."""
    before, after = evaluations.get("before"), evaluations.get("after")
    if before is None or after is None or before.stamp != after.stamp:
        return {}
    one, other = (Recorded(e.split, e.domain, {}, e.trials) for e in (before, after))
    return {f"pass^{k}": _text(difference(one, other, k), "+") for k in after.summary.pass_hat}


def _stamp_lines(evaluations: Named) -> Iterator[str]:
    """The stamp of one domain's evaluations, and what later ones have another value of."""
    stamps = [(name, evaluation.stamp) for name, evaluation in evaluations if evaluation.stamp is not None]
    if not stamps:
        return
    first_name, first = stamps[0]
    yield f"stamp {first.line()}"
    for name, stamp in stamps[1:]:
        if changed := differences(first.payload(), stamp.payload()):
            yield f"NOT COMPARABLE: the stamps of {first_name} and {name} differ in {'; '.join(changed)}"


def _model_lines(models: Mapping[str, float]) -> Iterator[str]:
    """The use of the user's model and of the judge's model in this run."""
    for name in sorted({key.partition("/")[0] for key in models}):
        used = {key.removeprefix(f"{name}/"): value for key, value in models.items() if key.startswith(f"{name}/")}
        if used.get("requests"):
            cost = f", ${used['cost']:.2f}" if "cost" in used else ""
            yield (
                f"{name} model: {used['requests']:.0f} requests, {used['prompt_tokens']:.0f} tokens read, "
                f"{used['completion_tokens']:.0f} written{cost}"
            )


def _macro_table(evaluations: Named) -> Table:
    """Mean over domains, each counted once."""
    names = list(dict.fromkeys(name for name, _ in evaluations))
    columns = [macro_pass_hat([one for name, one in evaluations if name == column]) for column in names]
    table = Table(title="mean over domains")
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for k in sorted(set.union(*map(set, columns))):
        table.add_row(f"pass^{k}", *(_text(column.get(k)) for column in columns))
    return table


def _text(estimate: Estimate | None, sign: str = "") -> str:
    if estimate is None or not estimate.tasks:
        return "-"
    return f"{estimate.value:{sign}.3f} [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"


if __name__ == "__main__":
    sys.exit(main())
