"""Token-exact sessions: a tree of sampled turns, whose tokens are the segments that trajectories and batches share.

A node is one sampled turn: the messages that came since its parent's turn, a segment of the tokens they added to the
prompt, and a segment of the sampled tokens. A request whose messages extend a node's conversation continues from that
node's tokens. Any other request opens a branch; sampled tokens are never tokenised again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from tau2_lightning.rollout.chat.message import Message, tools_key
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.segments import Segment

from .experts import split_experts
from .matching import same
from .requests import Request

_TOKEN_BYTES = 12  # its id, its log-prob and its version


@dataclass(eq=False)
class Node:
    """One sampled turn.

    Made from ``prompt``, the tokens between the parent's turn and this one, and the ``generation`` that answered.
    ``appended`` holds the former and ``sampled`` the latter, one segment behind the other; ``logprobs`` float32 and
    ``versions`` int32 belong to ``sampled``. Both segments have the experts of the generation, if it has those of every
    position between the parent's last token and the turn's last but one.
    ``began_s``: seconds from the begin of the session to the request.
    """

    parent: Node | None
    messages: Sequence[Message]
    reply: Message
    prompt: InitVar[Sequence[int]]
    generation: InitVar[Generation]
    completion_id: str
    setting: bytes = b""
    invalid_format: bool = False
    ended: bool = True
    altered: str | None = None
    reward: float | None = None
    superseded: bool = False
    began_s: float = 0.0
    children: list[Node] = field(default_factory=list, repr=False)
    appended: Segment = field(init=False, repr=False)
    sampled: Segment = field(init=False, repr=False)
    logprobs: npt.NDArray[np.float32] = field(init=False, repr=False)
    versions: npt.NDArray[np.int32] = field(init=False, repr=False)
    finish_reason: str = field(init=False)
    engine_s: float = field(init=False)
    queue_s: float = field(init=False)

    def __post_init__(self, prompt: Sequence[int], generation: Generation) -> None:
        above = self.parent.sampled if self.parent is not None else None
        before, after = split_experts(generation.experts, len(prompt), len(generation.token_ids), root=above is None)
        self.appended = Segment.of(prompt, above, before)
        self.sampled = Segment.of(generation.token_ids, self.appended, after)
        self.logprobs = np.array(generation.logprobs, np.float32)
        self.versions = np.array(generation.versions, np.int32)
        self.finish_reason = generation.finish_reason
        self.engine_s, self.queue_s = generation.seconds, generation.queued_s

    def path(self) -> list[Node]:
        """The turns from the root to this one."""
        nodes: list[Node] = []
        node: Node | None = self
        while node is not None:
            nodes.append(node)
            node = node.parent
        return nodes[::-1]


@dataclass
class Session:
    """One agent's conversation(s) with the policy. Created by SessionStore; all times are of its clock.

    ``sampling`` stands in for fields that a request leaves out; ``fixed_sampling`` takes the place of what it names.
    ``requests`` are those that run, and those that failed for a reason which is not the client's. ``recorded_bytes``:
    of the turns' messages as JSON, and of their tokens, log-probs and versions.
    """

    session_id: str
    api_key: str = field(repr=False)
    task_id: str = ""
    group_id: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    fixed_sampling: Mapping[str, Any] = field(default_factory=dict)
    roots: list[Node] = field(default_factory=list, repr=False)
    nodes: list[Node] = field(default_factory=list, repr=False)
    requests: list[Request] = field(default_factory=list, repr=False)
    final_reward: float | None = None
    closed: bool = False
    aborted: str | None = None
    in_flight: int = 0
    branches: int = 0
    started_at: float = field(default_factory=time.monotonic)
    last_used: float = field(default_factory=time.monotonic)
    recorded_bytes: int = 0
    _line: tuple[Node, list[int]] | None = field(default=None, repr=False)

    @cached_property
    def tools_key(self) -> bytes:
        """Digest of the session's own tools."""
        return tools_key(self.tools)

    @property
    def turns(self) -> int:
        return len(self.nodes)

    @property
    def completions(self) -> list[str]:
        """The ids of the recorded completions, in the order of sampling."""
        return [node.completion_id for node in self.nodes]

    @property
    def total_reward(self) -> float:
        """The final reward plus the turns' own rewards; 0 where none is set."""
        return (self.final_reward or 0.0) + sum(node.reward or 0.0 for node in self.nodes)

    @property
    def held_bytes(self) -> int:
        """``recorded_bytes``, and those of the requests that failed."""
        return self.recorded_bytes + sum(request.size for request in self.requests)

    @property
    def sampled_tokens(self) -> int:
        return sum(len(node.sampled.token_ids) for node in self.nodes)

    def match(self, messages: Sequence[Message], setting: bytes) -> tuple[Node | None, int]:
        """The turn that ``messages`` continue, and how many of them it covers; (None, 0) for a new conversation.

        ``setting`` is a digest of the other inputs of the prompt (tools, template arguments): a turn sampled under
        another setting is not continued. The deepest match wins, then the newest.
        """
        best: tuple[Node | None, int] = (None, 0)
        stack: list[tuple[Node, int]] = [(root, 0) for root in self.roots]
        while stack:
            node, at = stack.pop()
            end = at + len(node.messages)
            if end >= len(messages) or node.setting != setting:
                continue
            pairs = zip((*node.messages, node.reply), messages[at : end + 1], strict=True)
            if not all(same(recorded, sent) for recorded, sent in pairs):
                continue
            if end + 1 > best[1] or (end + 1 == best[1] and self._is_newer(node, best[0])):
                best = (node, end + 1)
            stack.extend((child, end + 1) for child in node.children)
        return best

    def _is_newer(self, node: Node, other: Node | None) -> bool:
        return next(known for known in reversed(self.nodes) if known is node or known is other) is node

    def tokens(self, node: Node | None) -> list[int]:
        """Every token up to and including ``node``'s turn: the prompt a continuation starts with. Do not modify."""
        if node is None:
            return []
        if self._line is not None and self._line[0] is node:
            return self._line[1]
        line: list[int] = node.sampled.flat().tolist()
        self._line = (node, line)
        return line

    def add(self, node: Node, line: list[int] | None = None) -> None:
        """Record a sampled turn. ``line``: every token up to its end, where the caller has them."""
        siblings = self.roots if node.parent is None else node.parent.children
        rivals = [sibling for sibling in siblings if _same_question(sibling, node)]
        if siblings and not rivals:
            self.branches += 1
        for rival in rivals:
            rival.superseded = True
        if node.parent is not None:
            # Of several answers to one prompt, the one that the conversation continues from was used.
            node.parent.superseded = False
            others = self.roots if node.parent.parent is None else node.parent.parent.children
            for other in others:
                other.superseded |= other is not node.parent and _same_question(other, node.parent)
        siblings.append(node)
        self.nodes.append(node)
        self.recorded_bytes += len(orjson.dumps([*node.messages, node.reply])) + _TOKEN_BYTES * (
            len(node.appended.token_ids) + len(node.sampled.token_ids)
        )
        if line is not None:
            self._line = (node, line)

    def find_turn(self, turn: int | str) -> Node:
        """A turn by its index in order of sampling (negative from the end) or by completion id. Raises KeyError.

        The choices of one completion share its id, which means the one that the conversation continues from, or else
        the first.
        """
        if isinstance(turn, int):
            if not -len(self.nodes) <= turn < len(self.nodes):
                raise KeyError(f"session {self.session_id} has {len(self.nodes)} turns, no turn {turn}")
            return self.nodes[turn]
        choices = [node for node in self.nodes if node.completion_id == turn]
        if not choices:
            raise KeyError(f"session {self.session_id} has no completion {turn!r}")
        return next((node for node in choices if node.children), choices[0])

    def leaves(self) -> Iterator[Node]:
        """The last turns of all conversations, the main line (sampled last) first; superseded answers only if
        rewarded."""
        for node in reversed(self.nodes):
            if not node.children and not (node.superseded and node.reward is None):
                yield node


def _same_question(answer: Node, node: Node) -> bool:
    """Whether ``answer`` is another answer to what ``node`` answers (a client's retry, or ``n > 1``)."""
    return (
        answer is not node
        and len(answer.messages) == len(node.messages)
        and all(map(same, answer.messages, node.messages))
    )
