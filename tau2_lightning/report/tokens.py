"""The sampled tokens of an episode, turn by turn, with the values that the page colours them by."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tau2_lightning.rollout_files.schema import KeptEpisode

#: Log-probs are held as thousandths of a nat.
SCALE = 1000
LOWEST = -99.0


def turn_tokens(one: KeptEpisode) -> list[dict[str, Any]]:
    """Each turn with its tokens: ``ids``, ``lp`` (behaviour log-probs, thousandths of a nat), ``d`` (trainer's less
    behaviour's, thousandths; None where not known), ``adv``, ``ver`` and ``on`` (trained). The last three are one value
    where all tokens of the turn have the same."""
    starts = np.concatenate([[0], np.cumsum(one.row_lengths)])[: len(one.row_lengths)]
    found = []
    for turn in one.turns:
        offset = int(starts[turn["row"]])
        span = slice(offset + turn["start"], offset + turn["end"])
        shown = {key: value for key, value in turn.items() if key not in ("start", "end") and value not in (None, "")}
        shown["n"] = turn["end"] - turn["start"]
        shown["at"] = turn["start"]
        shown["ids"] = one.tokens[span].tolist()
        shown["lp"] = _thousandths(one.logprobs[span])
        if len(one.trainer_logprobs):
            shown["d"] = _compact(_thousandths(one.trainer_logprobs[span] - one.logprobs[span]))
        shown["adv"] = _compact([float(f"{value:.4g}") for value in one.advantages[span].tolist()])
        shown["ver"] = _compact(one.versions[span].tolist())
        shown["on"] = _compact([int(value) for value in one.trained[span].tolist()])
        found.append(shown)
    return found


def _thousandths(values: npt.NDArray[np.float32]) -> list[int | None]:
    scaled = np.round(np.clip(values.astype(np.float64), LOWEST, -LOWEST) * SCALE)
    return [None if value != value else int(value) for value in scaled.tolist()]


def _compact(values: list[Any]) -> Any:
    """One value in the place of many equal ones."""
    return values[0] if values and all(value == values[0] for value in values) else values
