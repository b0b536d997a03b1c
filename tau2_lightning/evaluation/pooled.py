"""The evaluations of several runs of one experiment, which differ in their seeds: mean and interval over the runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from rich.table import Table

from .comparison import stamp_differences
from .intervals import LEVEL, student_t_quantile
from .recorded import Recorded

BEFORE, AFTER, CHANGE = "before", "after", "change"
#: The columns, in this order; a column that no run has is left out.
COLUMNS = (BEFORE, AFTER, CHANGE, "score")
Evaluations = Mapping[str, Mapping[str, Recorded]]


@dataclass(frozen=True)
class OverRuns:
    """One number of each run, and what they say of runs with other seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The mean over the runs; NaN without any."""
        return fmean(self.values) if self.values else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Student's 95% interval for the mean of all runs of the experiment: m -+ t(n - 1) s / sqrt(n). NaN for fewer
        than two runs, which say nothing about how much runs differ."""
        count = len(self.values)
        if count < 2:
            return math.nan, math.nan
        half = student_t_quantile(0.5 + LEVEL / 2, count - 1) * stdev(self.values) / math.sqrt(count)
        return self.mean - half, self.mean + half

    def text(self, sign: str = "") -> str:
        """``0.412 [0.301, 0.523]``; ``-`` without a value."""
        if not self.values:
            return "-"
        low, high = self.interval
        return f"{self.mean:{sign}.3f}" + ("" if math.isnan(low) else f" [{low:{sign}.3f}, {high:{sign}.3f}]")

    def payload(self) -> dict[str, Any]:
        """JSON-able; None for what is not known."""
        low, high = (None if math.isnan(end) else end for end in self.interval)
        return {"mean": self.mean if self.values else None, "low": low, "high": high, "values": list(self.values)}


@dataclass(frozen=True)
class Pool:
    """Runs of one experiment by name, with the evaluations that each has recorded (none: it has not ended).

    ``label`` names the experiment among others.
    """

    label: str
    runs: Mapping[str, Evaluations]

    @property
    def ended(self) -> dict[str, Evaluations]:
        """The runs with evaluations."""
        return {name: evaluations for name, evaluations in self.runs.items() if evaluations}

    @property
    def domains(self) -> list[str]:
        """The domains that any run was evaluated on."""
        found = (domain for run in self.ended.values() for by_domain in run.values() for domain in by_domain)
        return list(dict.fromkeys(found))

    def rows(self, domain: str) -> dict[int, dict[str, OverRuns]]:
        """pass^k over the runs, by k and column."""
        most = max((one.max_k for run in self.ended.values() for one in _of_domain(run, domain)), default=0)
        return {k: {column: self._over_runs(domain, column, k) for column in COLUMNS} for k in range(1, most + 1)}

    def not_comparable(self, domain: str) -> list[str]:
        """What the stamps of the runs differ in; runs of different worlds have no common mean."""
        every = [one for run in self.ended.values() for one in _of_domain(run, domain)]
        found = (stamp_differences({domain: every[0]}, {domain: one}) for one in every[1:])
        return list(dict.fromkeys(field for fields in found for field in fields))

    def _over_runs(self, domain: str, column: str, k: int) -> OverRuns:
        values = (_value(run, domain, column, k) for run in self.ended.values())
        return OverRuns(tuple(value for value in values if value is not None))

    def table(self) -> Table:
        """pass^k before and after training and its change, over the runs, and below pass^1 of each run."""
        count, of = len(self.ended), f" of {len(self.runs)}" if len(self.ended) < len(self.runs) else ""
        title = f"{self.label}\n" if self.label else ""
        different = list(dict.fromkeys(field for domain in self.domains for field in self.not_comparable(domain)))
        title += f"mean over {count}{of} runs, 95% interval over runs"
        if different:
            title += f"\nNOT COMPARABLE, stamps differ in {'; '.join(different)}"
        rows = {domain: self.rows(domain) for domain in self.domains}
        columns = [c for c in COLUMNS if any(row[c].values for by_k in rows.values() for row in by_k.values())]
        table = Table(title=title)
        for column in ("", *columns):
            table.add_column(column, justify="right" if column else "left")
        for domain, by_k in rows.items():
            prefix = f"{domain} " if len(rows) > 1 else ""
            for k, row in by_k.items():
                table.add_row(f"{prefix}pass^{k}", *(row[c].text("+" if c == CHANGE else "") for c in columns))
            table.add_section()
            for name, run in self.ended.items():
                values = [_value(run, domain, column, 1) for column in columns]
                signs = ("+" if column == CHANGE else "" for column in columns)
                texts = ["-" if v is None else f"{v:{sign}.3f}" for v, sign in zip(values, signs, strict=True)]
                table.add_row(f"{prefix}pass^1 of {name}", *texts)
            table.add_section()
        for name in self.runs.keys() - self.ended.keys():
            table.add_row(f"{name}: has not ended")
        return table

    def payload(self) -> dict[str, Any]:
        """JSON-able: the numbers of the table."""
        return {
            "label": self.label,
            "runs": list(self.runs),
            "ended": list(self.ended),
            "domains": {
                domain: {
                    "stamps_differ_in": self.not_comparable(domain),
                    "pass_hat": {
                        f"pass^{k}": {column: one.payload() for column, one in row.items() if one.values}
                        for k, row in self.rows(domain).items()
                    },
                }
                for domain in self.domains
            },
        }


def _of_domain(run: Evaluations, domain: str) -> list[Recorded]:
    return [by_domain[domain] for by_domain in run.values() if domain in by_domain]


def _value(run: Evaluations, domain: str, column: str, k: int) -> float | None:
    """pass^k of one run; None where it has no such evaluation, or too few trials for k."""
    if column == CHANGE:
        before, after = (_value(run, domain, one, k) for one in (BEFORE, AFTER))
        return None if before is None or after is None else after - before
    one = run.get(column, {}).get(domain)
    if one is None or one.max_k < k:
        return None
    return one.pass_hat(k).value
