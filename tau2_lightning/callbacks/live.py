"""The live view of a run on a terminal: one frame that is drawn again twice a second."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tau2_lightning.telemetry.sparkline import ASCII, BLOCKS, sparkline

from .standing import Standing, memory_in_words

REFRESHES = 2.0  # a second
WIDEST_CURVE = 60


class LiveView:
    """Shows ``standing``, and what ``playing`` says of the episodes that run: how many are finished, of how many (None:
    unknown), and a text. ``phase`` names what the run does now. What is printed meanwhile appears above the frame.

    The frame goes with ``stop``.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        standing: Standing,
        playing: Callable[[], tuple[int, int | None, str]],
        phase: Callable[[], str],
    ) -> None:
        self.console, self.title, self.standing, self.playing, self.phase = console, title, standing, playing, phase
        self._marks = ASCII if console.options.ascii_only else BLOCKS
        self._live = Live(
            get_renderable=self.frame, console=console, refresh_per_second=REFRESHES, transient=True, auto_refresh=True
        )

    def start(self) -> None:
        """Show the frame. A thread draws it."""
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Take the frame away."""
        self._live.stop()

    def frame(self) -> RenderableType:
        """What is shown now."""
        finished, total, episodes = self.playing()
        s = self.standing
        trains = s.step or not math.isinf(s.total)  # a run that only validates has no steps
        head = "   ".join(filter(None, [f"step {s.steps}" if trains else "", s.left, self.phase()]))
        bar = Padding(ProgressBar(total=total, completed=finished, pulse=total is None))  # which ends its line
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(overflow="fold")
        for label, text in self._rows(episodes):
            rows.add_row(label, Text(text))
        return Panel(Group(Text(head), bar, rows), title=Text(self.title), title_align="left")

    def _rows(self, episodes: str) -> Iterator[tuple[str, str]]:
        s = self.standing
        yield "episodes", episodes
        if s.rewards:
            yield "reward", self._curve(s.rewards)
        if s.score:
            yield "pass^1", f"{self._curve([score.value for score in s.scores.all], numbers=False)}{s.score}"
        if s.newest:
            rate = s.number("perf/rollout_tokens_per_second", ".0f")
            trained = s.number("perf/throughput", ".0f")
            transfers = s.number("transfer_rate", ".2f")
            yield "signal", f"{s.signal} groups   transfers {transfers}   staleness {s.staleness}"
            yield "tokens/s", f"{rate} sampled   {trained} trained"
        if s.excluded:
            yield "excluded", s.faults
        if memory := memory_in_words(s.device):
            yield "memory", memory

    def _curve(self, values: list[float], *, numbers: bool = True) -> str:
        line = sparkline(values, min(WIDEST_CURVE, max(8, self.console.width - 60)), self._marks)
        if not numbers:
            return f"{line}  " if len(values) > 1 else ""
        return f"{line}  {values[-1]:.3f} (first {values[0]:.3f})"
