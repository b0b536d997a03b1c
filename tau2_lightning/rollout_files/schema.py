"""One kept episode, and its columns in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

#: Changes when a column changes its meaning or goes; new columns do not change it.
FORMAT = 1


def _floats() -> npt.NDArray[np.float32]:
    return np.zeros(0, np.float32)


def _ints() -> npt.NDArray[np.int32]:
    return np.zeros(0, np.int32)


def _flags() -> npt.NDArray[np.bool_]:
    return np.zeros(0, np.bool_)


@dataclass(frozen=True, eq=False)
class KeptEpisode:
    """One episode as it was played, with all that training made of it.

    ``kind`` is ``train`` or ``validate``, ``step`` the training batch (from 0; of a validation the number of batches
    before it), ``number`` the validation of a start, ``episode`` the place in its file. ``status`` is ``trained``,
    ``validated``, or why it was not used: ``filtered`` (no signal), ``lost`` (fewer than two of its group finished),
    ``stale`` (too old), ``untrained`` (the batch broke off), ``failed`` (a fault, named in ``cause`` and told in
    ``message``; ``final`` is False where another attempt followed, which is an episode of its own).

    ``reward`` is the reward that is learnt from before penalties (None for ``failed``), ``tau2_reward`` tau2's own,
    ``reward_parts`` its factors (``DB``, ``COMMUNICATE``, ...), ``penalty`` the sum of what the algorithm takes off the
    turns, ``advantage`` the mean of the trained tokens' advantages. ``version`` is the trainer's weight version,
    ``oldest_version`` that of the oldest sampled token (-1: none known), ``staleness`` the difference. ``began`` is a
    Unix time; ``seconds`` counts from there; before it, the episode waited ``queued_s`` for a place. ``opening_s`` is
    what the user took before the agent's first turn.

    ``turns`` are mappings with ``row``, ``start`` and ``end`` (a half-open span of the row's tokens), ``reward``,
    ``penalty``, ``advantage``, ``invalid_format``, ``finish_reason``, ``altered``, ``began_s`` (since the begin of the
    session), ``engine_s`` (of which ``queue_s`` in the engine's queue), ``user_s`` and ``tool_s`` (after the turn).
    ``messages`` are mappings with ``role``, ``content`` and, where there are any, ``calls`` (``id``, ``name``,
    ``arguments``), ``by`` (``user`` for the user's own tools), ``error``, ``thought``, ``faults`` of the simulated user
    (``kind``, ``evidence``), ``at`` (seconds since ``began``) and ``turn`` (the index in ``turns`` that sampled it).

    A session has one row, or several where the agent rewrote its history: ``row_lengths`` [R] int32. All arrays are the
    rows one behind the other, one value a token: ``tokens`` int32, ``logprobs`` float32 (behaviour policy, nats, 0
    where not sampled), ``versions`` int32 (-1 where not sampled), ``trained`` bool, ``advantages`` float32,
    ``trainer_logprobs`` float32 (NaN where not known). ``stamp`` says what the episode was played on
    (`EvaluationStamp.payload`).
    """

    kind: str
    step: int
    episode: int
    status: str
    domain: str = ""
    split: str = ""
    task_id: str = ""
    group: str = ""
    sample: int = 0
    number: int = 0
    rank: int = 0
    cause: str = ""
    message: str = ""
    attempt: int = 0
    final: bool = True
    reward: float | None = None
    tau2_reward: float | None = None
    penalty: float = 0.0
    advantage: float = 0.0
    termination: str = ""
    user: str = ""
    transferred: bool = False
    transfer_expected: bool = False
    tool_calls: int = 0
    tool_errors: int = 0
    n_turns: int = 0
    sampled_tokens: int = 0
    trained_tokens: int = 0
    version: int = -1
    oldest_version: int = -1
    staleness: int = 0
    began: float = 0.0
    seconds: float = 0.0
    queued_s: float = 0.0
    opening_s: float = 0.0
    reward_parts: Mapping[str, float] = field(default_factory=dict)
    mistakes: Mapping[str, int] = field(default_factory=dict)
    user_faults: Mapping[str, int] = field(default_factory=dict)
    turns: Sequence[Mapping[str, Any]] = ()
    messages: Sequence[Mapping[str, Any]] = field(default=(), repr=False)
    row_lengths: npt.NDArray[np.int32] = field(default_factory=_ints, repr=False)
    tokens: npt.NDArray[np.int32] = field(default_factory=_ints, repr=False)
    logprobs: npt.NDArray[np.float32] = field(default_factory=_floats, repr=False)
    versions: npt.NDArray[np.int32] = field(default_factory=_ints, repr=False)
    trained: npt.NDArray[np.bool_] = field(default_factory=_flags, repr=False)
    advantages: npt.NDArray[np.float32] = field(default_factory=_floats, repr=False)
    trainer_logprobs: npt.NDArray[np.float32] = field(default_factory=_floats, repr=False)
    stamp: Mapping[str, Any] = field(default_factory=dict, repr=False)


TEXTS = ("kind", "status", "domain", "split", "task_id", "group", "cause", "message", "termination", "user")
INTS = ("step", "episode", "sample", "number", "rank", "attempt", "tool_calls", "tool_errors", "n_turns")
COUNTS = ("sampled_tokens", "trained_tokens", "version", "oldest_version", "staleness")
FLAGS = ("final", "transferred", "transfer_expected")
REALS = ("reward", "tau2_reward", "penalty", "advantage", "began", "seconds", "queued_s", "opening_s")
#: Columns that hold JSON as text in ASCII: what a model wrote may be no valid Unicode.
JSON_COLUMNS = ("reward_parts", "mistakes", "user_faults", "turns", "messages")
#: Columns of one value a token (``row_lengths``: one a row), with their numpy types.
ARRAYS: Mapping[str, type[np.generic]] = {
    "row_lengths": np.int32,
    "tokens": np.int32,
    "logprobs": np.float32,
    "versions": np.int32,
    "trained": np.bool_,
    "advantages": np.float32,
}
#: What a table of episodes does not need.
DIALOGUE_COLUMNS = ("turns", "messages", *ARRAYS)


def arrow_schema() -> pa.Schema:
    """The columns of a file, in order."""
    import pyarrow as pa

    fields = [(name, pa.string()) for name in TEXTS]
    fields += [(name, pa.int32()) for name in (*INTS, *COUNTS)]
    fields += [(name, pa.bool_()) for name in FLAGS]
    fields += [(name, pa.float64()) for name in REALS]
    fields += [(name, pa.string()) for name in JSON_COLUMNS]
    fields += [(name, pa.list_(pa.from_numpy_dtype(dtype))) for name, dtype in ARRAYS.items()]
    return pa.schema(fields)
