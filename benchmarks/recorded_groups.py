"""Groups of recorded tau2 episodes as token rows, for benchmarks of training on real lengths and real sharing.

A file holds the groups of one domain: for every row how many leading tokens it has in common with the row before it,
the others, and which tokens are the agent's. It is made by

    python benchmarks/recorded_groups.py TOKENIZER_FOLDER

from tau2's own tasks with full policies and all tool schemas: ``SAMPLES`` demonstrations each of ``TASKS`` training
tasks, in which fixes or actions are left out at random, rendered by the embedded hermes template with the tokenizer of
that folder (the kept files: Qwen3's). Token ids are numbered anew from 0, so that the file needs no tokenizer. The
first token of the agent is another one in every sample of a task: an expert repeats itself, where samples of a policy
part within a few tokens, so nothing behind the opening is shared.
"""

from __future__ import annotations

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt

from tau2_lightning.batch.batch import Batch
from tau2_lightning.batch.plain_rows import scoring_batch
from tau2_lightning.segments import common_prefix

TASKS, SAMPLES = 16, 8
FOLDER = Path(__file__).parent / "recorded"
TEMPLATE = Path(__file__).resolve().parents[1] / "tau2_lightning" / "policy" / "templates" / "hermes.jinja"


@dataclass(frozen=True)
class Recorded:
    """Rows of token ids (int32) in groups of ``SAMPLES``, and the agent's tokens of each (bool)."""

    tokens: list[npt.NDArray[np.int32]]
    actions: list[npt.NDArray[np.bool_]]
    vocabulary: int

    @classmethod
    def load(cls, name: str, tasks: int = TASKS) -> Recorded:
        """The first ``tasks`` groups of the file called ``name``."""
        with np.load(FOLDER / f"{name}.npz") as file:
            shared, sizes, suffixes = file["shared"], file["sizes"], file["suffixes"]
            bits = np.unpackbits(file["actions"])
            rows: list[npt.NDArray[np.int32]] = []
            actions: list[npt.NDArray[np.bool_]] = []
            at = bit = 0
            for common, size in zip(shared[: tasks * SAMPLES].tolist(), sizes.tolist(), strict=False):
                own = suffixes[at : at + size - common].astype(np.int32)
                rows.append(np.concatenate([rows[-1][:common], own]) if rows else own)
                actions.append(bits[bit : bit + size].astype(np.bool_))
                at, bit = at + size - common, bit + size
            return cls(rows, actions, int(suffixes.max()) + 1)

    def save(self, name: str) -> Path:
        """Write the file that ``load`` reads."""
        shared = [0, *(common_prefix(a, b) for a, b in zip(self.tokens, self.tokens[1:], strict=False))]
        pairs = zip(self.tokens, shared, strict=True)
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(
            path,
            shared=np.array(shared, np.int32),
            sizes=np.array([len(row) for row in self.tokens], np.int32),
            suffixes=np.concatenate([row[common:] for row, common in pairs]).astype(np.uint16),
            actions=np.packbits(np.concatenate(self.actions)),
        )
        return path

    def batch(self) -> Batch:
        """One row a dialogue, all tokens of the agent trained."""
        positions = [np.flatnonzero(mask).tolist() for mask in self.actions]
        return scoring_batch([row.tolist() for row in self.tokens], positions)

    def by_turn(self) -> Batch:
        """One row a turn of the agent: everything up to the turn's end, and only this turn trained."""
        rows: list[list[int]] = []
        positions: list[list[int]] = []
        for tokens, mask in zip(self.tokens, self.actions, strict=True):
            edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(np.int8), [0]])))
            for start, end in edges.reshape(-1, 2).tolist():
                rows.append(tokens[:end].tolist())
                positions.append(list(range(start, end)))
        return scoring_batch(rows, positions)


def record(domain: str, tokenizer_folder: str, *, solo_mode: bool, seed: int = 0) -> Recorded:
    """Demonstrations of ``TASKS`` training tasks as rows; see the module."""
    from transformers import PreTrainedTokenizerFast

    from tau2_lightning.environment import EnvironmentSettings, Playable, UserSettings, load_tasks
    from tau2_lightning.environment.demonstrations import demonstrate
    from tau2_lightning.policy.dialogues import TextDialogue, encode_spans, render_spans

    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(tokenizer_folder) / "tokenizer.json"))
    user = UserSettings(kind="none" if solo_mode else "scripted")
    settings = EnvironmentSettings(domain, solo_mode=solo_mode, user=user)
    rng, playable = random.Random(seed), Playable(settings)
    tasks = rng.sample([one for one in load_tasks(domain, "train", solo_mode=solo_mode) if playable.has(one)], TASKS)
    rows, actions = list[npt.NDArray[np.int32]](), list[npt.NDArray[np.bool_]]()
    for task in tasks:
        for _ in range(SAMPLES):
            made, _ = demonstrate(settings, task, rng, 0.2, {})
            text = render_spans(TextDialogue(made.messages, made.tools), TEMPLATE.read_text())
            encoded = encode_spans(text, tokenizer)
            rows.append(encoded.token_ids)
            actions.append(encoded.action_mask)
    known = np.unique(np.concatenate(rows))
    numbered = [np.searchsorted(known, row).astype(np.int32) for row in rows]
    for number, (row, mask) in enumerate(zip(numbered, actions, strict=True)):
        row[int(mask.argmax())] = len(known) + number % SAMPLES
    return Recorded(numbered, actions, len(known) + SAMPLES)


def main() -> None:
    """Record both files."""
    for name, domain, solo_mode in (("telecom_solo", "telecom", True), ("retail", "retail", False)):
        recorded = record(domain, sys.argv[1], solo_mode=solo_mode)
        path = recorded.save(name)
        lengths, sampled = [len(row) for row in recorded.tokens], sum(int(mask.sum()) for mask in recorded.actions)
        facts = Recorded.load(name).batch().sharing()
        print(f"{path.name}: {path.stat().st_size >> 10} KiB, {len(lengths)} rows of {min(lengths)} to {max(lengths)}")
        print(f"  {sampled / len(lengths):.0f} tokens of the agent a row; {facts}")


if __name__ == "__main__":
    main()
