"""Tables and figure of ``real_model.py``, from the run folders that its stages left."""

from __future__ import annotations

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tau2_lightning.evaluation.comparison import difference
from tau2_lightning.evaluation.recorded import Recorded, read_recorded

STAGES = {"untrained": "untrained", "sft": "after fine-tuning", "grpo": "after GRPO"}
SCORES = [(split, how) for split in ("train", "test") for how in ("sampled", "greedy")]
# Lower ends of the intervals of GRPO less fine-tuning: above zero is an improvement that chance does not explain.
AIMS = {"train sampled, lower end": "> 0", "test sampled, lower end": "> 0", "train greedy": "> 0"}
METRICS = ("reward/mean", "transfer_rate/unasked", "invalid_format_rate", "groups/kept", "entropy/all/mean")


def runs_called(folder: Path, name: str) -> list[Path]:
    """The run folders of a stage's attempts, oldest first."""
    found = {int(match[1]): path for path in (folder / "runs").glob(f"{name}-*") if (match := _number(name, path))}
    return [found[number] for number in sorted(found)]


def _number(name: str, path: Path) -> re.Match[str] | None:
    return re.fullmatch(re.escape(name) + r"-(\d+)", path.name)


def finished(folder: Path, name: str) -> Recorded | None:
    """The score called ``name``, if a validation of it came to its end."""
    for run in reversed(runs_called(folder, name)):
        if (run / "report.json").is_file():
            (recorded,) = read_recorded(run).values()
            return recorded
    return None


def tables(folder: Path) -> str:
    """All tables as Markdown: pass^k of each policy, what GRPO changed, and the course of training."""
    lines = []
    for split, how in SCORES:
        scores = {stage: finished(folder, f"{stage}-{split}-{how}") for stage in STAGES}
        most = max((one.max_k for one in scores.values() if one is not None), default=0)
        if not most:
            continue
        names = [f"pass^{k}" for k in range(1, most + 1)]
        title = "training tasks" if split == "train" else "held-out tasks"
        lines += [f"\n{title}, {how}:\n", "| | " + " | ".join([*names, "episodes", "excluded"]) + " |"]
        lines.append("|---" * (most + 3) + "|")
        for stage, one in scores.items():
            if one is not None:
                cells = [str(one.pass_hat(k)) for k in range(1, most + 1)]
                cells += [str(one.episodes), "?" if one.excluded is None else str(one.excluded)]
                lines.append(f"| {STAGES[stage]} | " + " | ".join(cells) + " |")
        for before, after in (("untrained", "sft"), ("sft", "grpo")):
            one, other = scores[before], scores[after]
            if one is not None and other is not None:
                gain = difference(one, other, 1)
                lines.append(
                    f"\n{STAGES[after]} less {STAGES[before]}, paired by task: "
                    f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
                )
    return "\n".join(lines + _course(folder)).lstrip("\n")


def differences(folder: Path) -> dict[str, float]:
    """pass^1 after GRPO less that after fine-tuning, paired by task, with the lower ends of 95% intervals."""
    found = {}
    for split, how in SCORES:
        one, other = (finished(folder, f"{stage}-{split}-{how}") for stage in ("sft", "grpo"))
        if one is not None and other is not None:
            gain = difference(one, other, 1)
            found[f"{split} {how}"] = round(gain.value, 4)
            found[f"{split} {how}, lower end"] = round(gain.low, 4)
    return found


def steps(folder: Path) -> list[dict[str, float]]:
    """The metrics of GRPO's steps."""
    rows: dict[int, dict[str, float]] = {}
    for run in runs_called(folder, "grpo"):
        file = run / "metrics" / "metrics.csv"
        for line in csv.DictReader(file.open()) if file.is_file() else ():
            found = {name: float(line[name]) for name in METRICS if line.get(name)}
            if found:
                rows.setdefault(int(line["step"]), {}).update(found)
    return [{"step": step, **row} for step, row in sorted(rows.items()) if "reward/mean" in row]


def _course(folder: Path) -> list[str]:
    rows = steps(folder)
    if not rows:
        return []
    lines = ["\nGRPO:\n", "| step | " + " | ".join(METRICS) + " |", "|---" * (len(METRICS) + 1) + "|"]
    for row in rows:
        lines.append(
            f"| {row['step']:.0f} | " + " | ".join(f"{row.get(name, float('nan')):.3f}" for name in METRICS) + " |"
        )
    seconds: dict[str, Any] = {}
    for run in runs_called(folder, "grpo"):
        if (run / "report.json").is_file():
            seconds = json.loads((run / "report.json").read_text())["seconds"]
    if seconds:
        lines.append("\nMinutes by phase: " + ", ".join(f"{name} {value / 60:.1f}" for name, value in seconds.items()))
    return lines


def figure(folder: Path, target: Path) -> None:
    """Draw the reward of GRPO's episodes by step, and pass^1 of the three policies with intervals."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tau2_lightning"  # the same data gives the same file
    from matplotlib import pyplot as plt

    sketch, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    rows = steps(folder)
    left.plot([row["step"] + 1 for row in rows], [row["reward/mean"] for row in rows], "C0.-")
    left.set(title="GRPO: mean reward of a step's episodes", xlabel="step")
    left.set_ylim(bottom=0)
    for number, (split, how) in enumerate(SCORES):
        scores = [finished(folder, f"{stage}-{split}-{how}") for stage in STAGES]
        known = [(x, one.pass_hat(1)) for x, one in enumerate(scores) if one is not None]
        heights = [estimate.value for _, estimate in known]
        errors = [[e.value - e.low for _, e in known], [e.high - e.value for _, e in known]]
        places = [x + (number - 1.5) * 0.06 for x, _ in known]
        style = "o-" if how == "sampled" else "x--"
        right.errorbar(places, heights, errors, fmt=style, color=f"C{number}", capsize=3, label=f"{split}, {how}")
    right.set_xticks(range(len(STAGES)), list(STAGES.values()))
    right.set(title="SmolLM2-135M on retail: pass^1")
    right.set_ylim(bottom=0)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(loc="upper left", frameon=False)
    sketch.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    plt.close(sketch)
