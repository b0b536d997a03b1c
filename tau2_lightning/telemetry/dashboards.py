"""What a logger can show besides numbers: dialogues, files, and numbers that sum a run up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

#: How files reach a dashboard: themselves, or only the place where they lie.
How = Literal["upload", "reference"]


@dataclass(frozen=True)
class ShownDialogue:
    """A sampled episode as a line of a table; ``dialogue`` is its text."""

    step: int
    domain: str
    task: str
    sample: int
    status: str
    reward: float
    reward_parts: str
    advantage: float
    turns: int
    sampled_tokens: int
    staleness: int
    ended: str
    transferred: bool
    mistakes: str
    user_faults: str
    dialogue: str

    @classmethod
    def columns(cls) -> list[str]:
        """The names of the columns."""
        return [field.name for field in fields(cls)]

    def row(self) -> list[Any]:
        """The values of the columns."""
        return list(astuple(self))

    def markdown(self) -> str:
        """The episode as a text by itself."""
        facts = {name: value for name, value in zip(self.columns(), self.row(), strict=True) if name != "dialogue"}
        told = ", ".join(f"{name} {value}" for name, value in facts.items() if value != "" and value is not False)
        return f"{told}\n\n{self.dialogue}"


@runtime_checkable
class Dashboard(Protocol):
    """A logger that shows more than numbers. Rank 0 calls it."""

    def show_dialogues(self, kind: str, step: int, dialogues: Sequence[ShownDialogue]) -> None:
        """Show sampled episodes of ``train`` or ``validate`` beside the numbers of ``step``."""

    def keep_files(
        self, kind: str, name: str, paths: Sequence[Path], *, aliases: Sequence[str] = (), how: How = "upload"
    ) -> None:
        """Keep files, or one folder, as a version of ``name``; ``kind`` is what they are (``results``, ``model``)."""

    def keep_summary(self, step: int, values: Mapping[str, float]) -> None:
        """Note numbers that stand for the whole run, as they are after ``step`` batches."""

    def where(self) -> str:
        """Where a person finds this dashboard, in words."""


def dashboards(loggers: Iterable[object]) -> list[Dashboard]:
    """Those of ``loggers`` that show more than numbers."""
    return [logger for logger in loggers if isinstance(logger, Dashboard)]
