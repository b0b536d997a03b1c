"""Measure every layout against one process and write docs/parity.json and the tables made from it.

Run from the project's root: python -m tools.parity_table [--from-results]. Some minutes on two cores.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

RESULTS = Path("docs/parity.json")
BEGIN, END = "<!-- parity table: made by tools/parity_table.py -->", "<!-- end of the parity table -->"
PAGE = """# Layouts against one process

A four-layer model in float32, ragged rows packed side by side, two accumulated calls of `forward_backward`, PPO's
clipped loss, a clipped AdamW step; data ranks bring different numbers of micro-batches. The columns say how far a
layout is from one process at most, over all parameters and ranks. The last row is a control: with FSDP's own mean in
the place of the sum, gradients are wrong, and the test must see it. `python -m tools.parity_table` measures anew; a
test holds this page to docs/parity.json, and `make test-all` measures every row.

"""


def table(results: list[dict[str, Any]], *, short: bool = False) -> str:
    """The results as Markdown; ``short`` leaves one row a layout: the largest difference of its cases."""
    if short:
        rows = ["| layout | largest gradient difference | of gradients up to |", "|---|---|---|"]
        for layout in dict.fromkeys(entry["layout"] for entry in results if not entry["mean"]):
            of = [entry for entry in results if entry["layout"] == layout and not entry["mean"]]
            worst, size = max(entry["gradient"] for entry in of), max(entry["gradient_size"] for entry in of)
            rows.append(f"| {layout} | {worst:.0e} | {size:.2f} |")
        control = next(entry for entry in results if entry["mean"])
        return "\n".join([*rows, f"| {control['layout']}, control | {control['gradient']:.0e} | {size:.2f} |"])
    head = "| layout | model | schedule | gradient | of up to | loss | norm | weights after a step | log-probs |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for entry in results:
        model = entry["model"] + (", tied" if entry["tied"] else "")
        schedule = entry["schedule"] if "p" in entry["layout"] else "-"
        layout = entry["layout"] + (", control" if entry["mean"] else "")
        cells = [f"{entry[key]:.0e}" for key in ("loss", "norm", "weights", "logprobs")]
        rows.append(
            f"| {layout} | {model} | {schedule} | {entry['gradient']:.0e} | {entry['gradient_size']:.2f} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(rows)


def main(arguments: list[str]) -> None:
    if "--from-results" not in arguments:
        from tests.strategy.parity import EVERY, measure, row

        found = measure(EVERY, timeout=580.0)
        lines = ",\n".join(json.dumps(row(case, found[case])) for case in EVERY)
        RESULTS.write_text(f"[\n{lines}\n]\n")
    results = json.loads(RESULTS.read_text())
    Path("docs/parity.md").write_text(f"{PAGE}{BEGIN}\n{table(results)}\n{END}\n")
    readme = Path("README.md")
    pattern = re.escape(BEGIN) + r"\n.*?" + re.escape(END)
    readme.write_text(re.sub(pattern, f"{BEGIN}\n{table(results, short=True)}\n{END}", readme.read_text(), flags=re.S))


if __name__ == "__main__":
    main(sys.argv[1:])
