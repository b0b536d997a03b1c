"""The bound on kept rollouts, `rollout.keep_rollouts`: all of them, none, so many steps, or so many bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass

ALLOWED = "all, none, a number of training steps such as 500steps, or a size such as 20GiB or 800MiB"
_FORM = re.compile(r"(\d+)\s*(steps?|[MGT]iB)", re.I)
_BYTES = {"mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True)
class KeptBound:
    """How much of the rollouts stays in the run folder. ``steps`` training steps or ``size`` bytes; None: no bound."""

    steps: int | None = None
    size: int | None = None

    @classmethod
    def parse(cls, text: str) -> KeptBound:
        """``all``, ``none``, ``500steps``, ``20GiB``. Raises ValueError that says what is allowed."""
        word = text.strip().lower()
        if word in ("all", "none"):
            return cls(None if word == "all" else 0)
        found = _FORM.fullmatch(word)
        if found is None or int(found[1]) == 0:
            raise ValueError(f"is no amount of rollouts with its unit: {ALLOWED}")
        if found[2].startswith("step"):
            return cls(steps=int(found[1]))
        return cls(size=int(found[1]) * _BYTES[found[2]])

    @property
    def keeps(self) -> bool:
        """Whether anything is kept."""
        return self.steps != 0
