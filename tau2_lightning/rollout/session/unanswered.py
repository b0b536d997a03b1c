"""Requests without an answer: an episode with such a request was not decided by the agent alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.chat.message import Message

from .matching import same
from .requests import Request
from .tree import Node, Session


def client_left() -> InfrastructureFault:
    """The fault of a request whose client left, for instance after a timeout of its own."""
    return InfrastructureFault("session", "client_left", "the client did not wait for the answer to a request")


def unanswered(session: Session) -> Iterator[Request]:
    """The requests of ``session`` that no recorded turn answers, newest first.

    A turn answers a request when it was sampled for the same messages, so a client's successful retry clears a failure.
    Of a stream with several choices some may be recorded before another one fails: they do not answer that request.
    A request that was refused before its messages were read counts as answered when any later turn exists.
    """
    for request in reversed(session.requests):
        if request.messages is None:
            answered = session.turns > request.turns
        else:
            own = "" if request.client_left else request.completion_id
            answered = _answered(session.roots, request.messages, own)
        if not answered:
            yield request


def repeats(request: Request, other: Request) -> bool:
    """Whether ``request`` asks what ``other`` asks, possibly spelled differently."""
    if request.messages is None or other.messages is None:
        return request.messages is other.messages
    return len(request.messages) == len(other.messages) and all(map(same, request.messages, other.messages))


def _answered(roots: Sequence[Node], messages: Sequence[Message], own: str) -> bool:
    """Whether a turn at or below ``roots``, not of the completion ``own``, was sampled for exactly ``messages``."""
    stack = [(root, 0) for root in roots]
    while stack:
        node, at = stack.pop()
        end = at + len(node.messages)
        if end > len(messages) or not all(map(same, node.messages, messages[at:end])):
            continue
        if end == len(messages):
            if node.completion_id != own:
                return True
        elif same(node.reply, messages[end]):
            stack.extend((child, end + 1) for child in node.children)
    return False
