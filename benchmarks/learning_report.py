"""Makes the tables and the figure of ``learning.py`` from the records of its seeds: pure functions over JSON."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from tau2_lightning.environment import find_task
from tau2_lightning.environment.tasks import get_task
from tau2_lightning.evaluation.intervals import Estimate, clustered_interval
from tau2_lightning.evaluation.pass_hat import pass_hat_k, succeeded
from tau2_lightning.evaluation.summary import summarize
from tau2_lightning.trajectory import EpisodeOutcome

Seed = dict[str, Any]
KS = (1, 2, 3, 4)


def outcomes(evaluation: dict[str, Any]) -> list[EpisodeOutcome]:
    """Return the evaluation's episodes as `EpisodeOutcome`s."""
    return [EpisodeOutcome(**{**episode, "actions": tuple(episode["actions"])}) for episode in evaluation["episodes"]]


def select(seed: Seed, when: str, split: str, *, greedy: bool) -> dict[str, Any]:
    """Return the evaluation ``before`` or ``after`` training. Both have more than one trial or are greedy, unlike those
    between epochs."""
    found = [e for e in seed["evaluations"] if e["split"] == split and e["greedy"] == greedy]
    return dict(found[0] if when == "before" else found[-1])


def per_task(
    episodes: Iterable[EpisodeOutcome], value: Callable[[Sequence[EpisodeOutcome]], float | None]
) -> dict[str, float]:
    """``value`` of each task's trials; tasks for which it is None are left out."""
    tasks: defaultdict[str, list[EpisodeOutcome]] = defaultdict(list)
    for episode in episodes:
        tasks[episode.task_id].append(episode)
    found = {task: value(trials) for task, trials in tasks.items()}
    return {task: number for task, number in found.items() if number is not None}


def pooled(
    seeds: Sequence[Sequence[EpisodeOutcome]], value: Callable[[Sequence[EpisodeOutcome]], float | None]
) -> Estimate:
    """Average over seeds, then over tasks; the interval is clustered by task, as all seeds play the same tasks."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for episodes in seeds:
        for task, number in per_task(episodes, value).items():
            found[task].append(number)
    means = [fmean(numbers) for numbers in found.values()]
    low, high = clustered_interval(means, float(sum(map(len, seeds))))
    return Estimate(fmean(means) if means else float("nan"), low, high, len(means))


def hat(k: int) -> Callable[[Sequence[EpisodeOutcome]], float | None]:
    """pass^k of one task's trials; None with fewer than k."""
    return lambda trials: pass_hat_k(len(trials), sum(map(succeeded, trials)), k) if len(trials) >= k else None


def plain(value: Callable[[Sequence[EpisodeOutcome]], float | None]) -> Callable[[Sequence[EpisodeOutcome]], Any]:
    """Return ``value`` restricted to tasks whose gold solution does not transfer to a human."""
    return lambda trials: None if trials[0].transfer_expected else value(trials)


def transferred(trials: Sequence[EpisodeOutcome]) -> float:
    """Return the share of the trials that were transferred."""
    return fmean(trial.transferred for trial in trials)


def needs(task_id: str, domain: str = "telecom") -> set[str]:
    """Return the names of the tools that the task's gold solution calls."""
    criteria = get_task(find_task(domain, task_id)).evaluation_criteria
    return {action.name for action in (criteria.actions if criteria is not None else None) or ()}


def show(estimate: Estimate) -> str:
    """Format value and interval as the report of a run does."""
    return "-" if not estimate.tasks else f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def scores(seeds: Sequence[Seed], split: str, *, greedy: bool) -> list[str]:
    """Return the Markdown rows of one split: each seed and all seeds, before and after training."""
    ks = (1,) if greedy else KS
    names = [f"pass^{k}" for k in ks]
    title = f"{split}, {'greedy' if greedy else 'sampled'}"
    head = ["", "", *names, "pass^1 without transfer tasks", "unasked transfers", "turns", "tool errors a call",
            "malformed a call", "excluded"]  # fmt: skip
    lines = [f"\n{title}:\n", "| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    groups = [(f"seed {seed['seed']}", [seed]) for seed in seeds]
    if len(seeds) > 1:
        groups.append(("all", list(seeds)))
    for name, members in groups:
        for when in ("before", "after"):
            chosen = [select(seed, when, split, greedy=greedy) for seed in members]
            played = [outcomes(evaluation) for evaluation in chosen]
            episodes = [episode for one in played for episode in one]
            summary = summarize(episodes)
            cells = [show(pooled(played, hat(k))) for k in ks]
            cells += [show(pooled(played, plain(hat(1)))), show(pooled(played, plain(transferred)))]
            cells += [f"{summary.mean_turns:.1f}", f"{summary.tool_error_rate:.4f}", f"{malformed(episodes):.4f}"]
            cells += [str(sum(sum(evaluation["excluded"].values()) for evaluation in chosen))]
            lines.append(f"| {name} | {when} | " + " | ".join(cells) + " |")
    return lines


def malformed(episodes: Sequence[EpisodeOutcome]) -> float:
    """Return the agent's own mistakes in form (unreadable call, unknown tool, ...) per turn."""
    return sum(sum(e.mistakes.values()) for e in episodes) / max(1, sum(e.turns for e in episodes))


def skills(seeds: Sequence[Seed], split: str = "test") -> list[str]:
    """Return Markdown rows: each skill that the demonstrations lack, on the tasks whose gold solution needs it."""
    lines = [
        "\nSkills left out of the demonstrations:\n",
        "| skill | tasks | success before | after | called before | after |",
        "|---|---|---|---|---|---|",
    ]
    for skill in sorted({skill for seed in seeds for skill in seed["weak_skills"]}):
        cells, tasks = [], 0
        for value in (hat(1), lambda trials, skill=skill: fmean(skill in trial.actions for trial in trials)):
            for when in ("before", "after"):
                played = [
                    [e for e in outcomes(select(seed, when, split, greedy=False)) if skill in needs(e.task_id)]
                    for seed in seeds
                ]
                found = pooled(played, value)
                tasks = found.tasks
                cells.append(show(found))
        lines.append(f"| `{skill}` | {tasks} | " + " | ".join(cells) + " |")
    return lines


def training(seeds: Sequence[Seed]) -> list[str]:
    """Return Markdown rows: the course of training and the minutes of each phase."""
    lines = [
        "\nTraining:\n",
        "| seed | steps | episodes' reward, first and last step | entropy, first and last | mismatch, mean and max "
        "(nats) | tokens trained | minutes of warm start | of training | of all |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for seed in seeds:
        steps = seed["steps"]
        wall = {name: seconds / 60 for name, seconds in seed["wall"].items()}
        cells = [
            f"{len(steps)}",
            f"{steps[0]['reward/mean']:.3f}, {steps[-1]['reward/mean']:.3f}",
            f"{steps[0].get('entropy/all/mean', 0):.4f}, {steps[-1].get('entropy/all/mean', 0):.4f}",
            f"{fmean(step.get('mismatch_kl/all/mean', 0) for step in steps):.1e}, "
            f"{max(step.get('sampling/sampling_logp_difference/max', 0) for step in steps):.1e}",
            f"{sum(step.get('tokens/trained', 0) for step in steps):.0f}",
            f"{wall['warm start']:.1f}",
            f"{wall['training']:.1f}",
            f"{wall['all']:.1f}",
        ]
        lines.append(f"| {seed['seed']} | " + " | ".join(cells) + " |")
    phases = sorted({phase for seed in seeds for phase in seed["seconds"]})
    lines += ["\nMinutes by phase:\n", "| seed | " + " | ".join(phases) + " |", "|---" * (len(phases) + 1) + "|"]
    for seed in seeds:
        minutes = [f"{seed['seconds'].get(phase, 0) / 60:.1f}" for phase in phases]
        lines.append(f"| {seed['seed']} | " + " | ".join(minutes) + " |")
    return lines


def report(seeds: Sequence[Seed]) -> str:
    """Return all tables as Markdown."""
    lines: list[str] = []
    for split in ("test", "train"):
        for greedy in (False, True):
            lines += scores(seeds, split, greedy=greedy)
    return "\n".join(lines + skills(seeds) + training(seeds)).lstrip("\n")


def ratios(seeds: Sequence[Seed]) -> dict[str, float]:
    """Return the figures that have an aim, each from the seed with the worst value."""
    found: defaultdict[str, list[float]] = defaultdict(list)
    for seed in seeds:
        for when in ("before", "after"):
            for greedy in (False, True):
                played = outcomes(select(seed, when, "test", greedy=greedy))
                how = "greedy" if greedy else "sampled"
                found[f"{how}_pass^1_{when}"].append(pooled([played], hat(1)).value)
                if when == "after" and not greedy:
                    found["sampled_pass^4_after"].append(pooled([played], hat(4)).value)
                    found["unasked_transfers_after"].append(pooled([played], plain(transferred)).value)
                    found["malformed_after"].append(malformed(played))
        found["training_minutes"].append(seed["wall"]["training"] / 60)
    worst_is_low = {"sampled_pass^1_after", "greedy_pass^1_after", "sampled_pass^4_after"}
    return {name: (min if name in worst_is_low else max)(values) for name, values in found.items()}


def figure(seeds: Sequence[Seed], target: Path) -> None:
    """Draw reward on training tasks and pass^1 on held-out tasks over the steps, one line for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "tau2_lightning"  # the same data gives the same file
    from matplotlib import pyplot as plt

    sketch, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
    for number, seed in enumerate(seeds):
        colour = f"C{number}"
        steps = seed["steps"]
        left.plot(
            range(1, len(steps) + 1), [step["reward/mean"] for step in steps], colour, label=f"seed {seed['seed']}"
        )
        sampled = [e for e in seed["evaluations"] if e["split"] == "test" and not e["greedy"]]
        right.plot([e["step"] for e in sampled], [pooled([outcomes(e)], hat(1)).value for e in sampled], colour)
        for when, x in (("before", sampled[0]["step"]), ("after", sampled[-1]["step"])):
            estimate = pooled([outcomes(select(seed, when, "test", greedy=False))], hat(1))
            errors = [[estimate.value - estimate.low], [estimate.high - estimate.value]]
            right.errorbar([x], [estimate.value], errors, fmt=f"{colour}o", capsize=3)
            greedy = pooled([outcomes(select(seed, when, "test", greedy=True))], hat(1)).value
            right.plot([x], [greedy], f"{colour}x", label="greedy" if number == 0 and when == "before" else None)
    tasks = len({episode["task_id"] for episode in select(seeds[0], "after", "test", greedy=True)["episodes"]})
    left.set(title="training tasks: mean reward of a step's episodes", xlabel="GRPO step", ylim=(0, 1.02))
    right.set(title=f"{tasks} held-out test tasks: pass^1", xlabel="GRPO step")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", frameon=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    sketch.savefig(target, metadata={"Date": None} if target.suffix == ".svg" else None)
    plt.close(sketch)
