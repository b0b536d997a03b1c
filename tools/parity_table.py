"""Measures every layout against one process; writes docs/parity.json and the tables of docs/parity.md.

Run it from the project's root: python -m tools.parity_table [--from-results]. It takes a minute and a half on two idle
cores. With --from-results it measures nothing and makes the page from docs/parity.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

RESULTS = Path("docs/parity.json")
BEGIN, END = "<!-- parity table: made by tools/parity_table.py -->", "<!-- end of the parity table -->"
SUMMARY_BEGIN, SUMMARY_END = (
    "<!-- parity summary: made by tools/parity_table.py -->",
    "<!-- end of the parity summary -->",
)
PAGE = """# Layouts against one process

This page shows how far the gradients of each parallel layout are from the gradients of one process.

The letters are those of `allocation_mode`: `d` data, `t` tensor, `p` pipeline, `c` context and `e` expert parallelism.

What is measured:

- The model has four layers and computes in float32 on a CPU.
- Rows of different lengths are packed side by side. Data ranks get different numbers of micro-batches.
- Two calls of `forward_backward` accumulate gradients of PPO's clipped loss. One clipped AdamW step follows.
- A column holds the largest difference to one process, over all parameters and all ranks. "Of up to" is the largest
  gradient itself.
- The last two rows are controls. Their gradients are wrong, and the test must see that. `mean` averages gradients over
  data ranks (FSDP's own choice) where the strategy sums them. `router` does not sum the gradients of the routers over
  tensor ranks, each of which routes a part of the tokens.
- `qwen3_moe` has four experts, of which a token uses two. Under `t` its attention is split. Its experts are spread over
  `e` of the `d` x `c` x `t` ranks of a stage; ranks that hold the same experts shard them. `_4kv` has four key-value
  heads instead of two, so that `c` can cut what `t` has split; in `_mixed` one layer has an MLP instead of experts.
  `tests/strategy/test_experts.py` compares such layouts with plain transformers in float64.

`python -m tools.parity_table` measures every row and writes docs/parity.json and this page. `make test` compares the
two and measures five layouts of two ranks, four layouts of four ranks and the controls. `make test-all` measures all.

"""


def table(results: list[dict[str, Any]], *, short: bool = False) -> str:
    """The results as Markdown. ``short`` keeps one row for each layout: the largest difference of its cases."""
    if short:
        rows = ["| layout | largest gradient difference | of gradients up to |", "|---|---|---|"]
        for layout in dict.fromkeys(entry["layout"] for entry in results if not entry["control"]):
            of = [entry for entry in results if entry["layout"] == layout and not entry["control"]]
            worst, size = max(entry["gradient"] for entry in of), max(entry["gradient_size"] for entry in of)
            rows.append(f"| {layout} | {worst:.0e} | {size:.2f} |")
        for entry in results:
            if entry["control"]:
                rows.append(f"| {_layout(entry)} | {entry['gradient']:.0e} | {entry['gradient_size']:.2f} |")
        return "\n".join(rows)
    head = "| layout | model | schedule | gradient | of up to | loss | norm | weights after a step | log-probs |"
    rows = [head, "|---|---|---|---|---|---|---|---|---|"]
    for entry in results:
        model = entry["model"] + (", tied" if entry["tied"] else "")
        schedule = entry["schedule"] if "p" in entry["layout"] else "-"
        layout = _layout(entry)
        cells = [f"{entry[key]:.0e}" for key in ("loss", "norm", "weights", "logprobs")]
        rows.append(
            f"| {layout} | {model} | {schedule} | {entry['gradient']:.0e} | {entry['gradient_size']:.2f} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(rows)


def _layout(entry: dict[str, Any]) -> str:
    return f"{entry['layout']}, control: {entry['control']}" if entry["control"] else str(entry["layout"])


def main(arguments: list[str]) -> None:
    if "--from-results" not in arguments:
        from tests.strategy.parity import EVERY, measure, row

        found = measure(EVERY, timeout=580.0)
        lines = ",\n".join(json.dumps(row(case, found[case])) for case in EVERY)
        RESULTS.write_text(f"[\n{lines}\n]\n")
    results = json.loads(RESULTS.read_text())
    summary = f"{SUMMARY_BEGIN}\n{table(results, short=True)}\n{SUMMARY_END}"
    every = f"{BEGIN}\n{table(results)}\n{END}"
    Path("docs/parity.md").write_text(
        f"{PAGE}## Each layout\n\n{summary}\n\n## Each layout, model and schedule\n\n{every}\n"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
