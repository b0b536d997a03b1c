"""The episodes of all runs as the page holds them: an index for the table, and dialogues in packed chunks."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tau2_lightning.rollout_files.names import FOLDER, FileName, kept_files
from tau2_lightning.rollout_files.reader import read_file
from tau2_lightning.rollout_files.schema import KeptEpisode

from .packed import packed
from .tokens import turn_tokens

#: Episodes of a chunk: one is unpacked at once, so that the samples of a group open together.
CHUNK = 8
#: A longer text is held once for the page, however many dialogues contain it: the prompt, above all.
LONG = 400

# The columns of the index, as the page names them, from the fields of an episode.
COLUMNS: Mapping[str, str] = {
    "kind": "kind", "step": "step", "status": "status", "domain": "domain", "split": "split", "task": "task_id",
    "group": "group", "sample": "sample", "number": "number", "attempt": "attempt", "final": "final",
    "cause": "cause", "reward": "reward", "tau2": "tau2_reward", "penalty": "penalty", "advantage": "advantage",
    "staleness": "staleness", "turns": "n_turns", "tokens": "sampled_tokens", "trained": "trained_tokens",
    "calls": "tool_calls", "errors": "tool_errors", "ended": "termination", "transferred": "transferred",
    "seconds": "seconds", "queued": "queued_s", "began": "began", "mistakes": "mistakes", "faults": "user_faults",
}  # fmt: skip


@dataclass
class PackedFile:
    """What the page holds of one file of rollouts: columns of the index, chunks, and what the chunks refer to."""

    columns: dict[str, list[Any]]
    chunks: list[str]
    texts: dict[str, str]
    token_ids: set[int]
    episodes: list[KeptEpisode] = field(repr=False)

    def __len__(self) -> int:
        return len(self.episodes)


class Book:
    """Packs the files of runs. A file that has not changed since the last time is not packed again (``--watch``)."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[tuple[float, ...], PackedFile]] = {}

    def files(self, root: Path) -> Iterator[tuple[FileName, Path]]:
        """The files of a run, the newest first."""
        return iter(reversed(kept_files(root / FOLDER)))

    def packed(self, name: FileName, path: Path) -> PackedFile | None:
        """The episodes of a file; None when it has gone meanwhile."""
        try:
            version = _version(name, path)
            known = self._known.get(path)
            if known is not None and known[0] == version:
                return known[1]
            found = packed_file(read_file(name, path))
        except FileNotFoundError:
            return None
        self._known[path] = (version, found)
        return found


def packed_file(episodes: Sequence[KeptEpisode]) -> PackedFile:
    """Pack the episodes of one file, the samples of a group side by side."""
    order = sorted(episodes, key=lambda one: (one.group, one.sample, one.attempt, one.episode))
    columns: dict[str, list[Any]] = {
        shown: [_plain(getattr(one, name)) for one in order] for shown, name in COLUMNS.items()
    }
    columns["began"] = [round(one.began, 2) for one in order]
    columns["mismatch"] = [_plain(_mismatch(one)) for one in order]
    texts: dict[str, str] = {}
    token_ids: set[int] = set()
    chunks = []
    for start in range(0, len(order), CHUNK):
        dialogues = [_dialogue(one, texts) for one in order[start : start + CHUNK]]
        for dialogue in dialogues:
            token_ids.update(token for turn in dialogue["turns"] for token in turn["ids"])
        chunks.append(packed(dialogues))
    # The dialogues are packed now; the columns stay for the intervals of curves.
    light = [_light(one) for one in order]
    return PackedFile(columns, chunks, texts, token_ids, light)


def _dialogue(one: KeptEpisode, texts: dict[str, str]) -> dict[str, Any]:
    return {
        "messages": [_message(message, texts) for message in one.messages],
        "turns": turn_tokens(one),
        "rows": [int(length) for length in one.row_lengths],
        "parts": dict(one.reward_parts),
        "user": one.user,
        "version": one.version,
        "oldest": one.oldest_version,
        "opening": round(one.opening_s, 3),
        "fault": one.message,
        "expected": one.transfer_expected,
        "stamp": one.stamp.get("digest", ""),
    }


def _message(message: Mapping[str, Any], texts: dict[str, str]) -> dict[str, Any]:
    content = message.get("content")
    if not isinstance(content, str) or len(content) < LONG:
        return dict(message)
    digest = hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    texts[digest] = content
    shown = {key: value for key, value in message.items() if key != "content"}
    return {**shown, "text": digest}


def _mismatch(one: KeptEpisode) -> float | None:
    """The mean |trainer - behaviour| log-prob of the trained tokens, in nats."""
    known = one.trained & (one.trainer_logprobs == one.trainer_logprobs) if len(one.trainer_logprobs) else one.trained
    if not len(one.trainer_logprobs) or not known.any():
        return None
    return float(abs(one.trainer_logprobs[known] - one.logprobs[known]).mean())


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return None if value != value or value in (float("inf"), float("-inf")) else float(f"{value:.6g}")
    return dict(value) if isinstance(value, Mapping) else value


def _light(one: KeptEpisode) -> KeptEpisode:
    return KeptEpisode(
        one.kind, one.step, one.episode, one.status, domain=one.domain, task_id=one.task_id, reward=one.reward
    )


def _version(name: FileName, path: Path) -> tuple[float, ...]:
    """Changes when the file or its log-probs do."""
    files: Iterable[Path] = [path]
    if name.kind == "train":
        files = [path, *sorted(path.parent.glob(f"scores-{name.step:06d}*"))]
    return tuple(one.stat().st_mtime_ns for one in files)
