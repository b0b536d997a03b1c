"""Whose failure an exception of an agent workflow is."""

from __future__ import annotations

from collections.abc import Iterator

from tau2_lightning.errors import InfrastructureFault, Tau2LightningError, WorkflowFault

_CONTEXT = "context_length_exceeded"


def innermost(error: BaseException) -> BaseException:
    """The first exception inside nested exception groups, which agents with parallel parts raise."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def wrapped(error: BaseException) -> Tau2LightningError | None:
    """The newest error of this program that ``error`` was raised from: frameworks wrap what they catch."""
    return next((link for link in _chain(error) if isinstance(link, Tau2LightningError)), None)


def workflow_fault(error: BaseException) -> WorkflowFault:
    """The fault of a workflow that raised ``error``, counted by the exception's type.

    A full context, which is the policy's doing as often as the agent's, is counted by that name.
    """
    cause = _CONTEXT if any(getattr(link, "code", None) == _CONTEXT for link in _chain(error)) else type(error).__name__
    return WorkflowFault(cause, repr(error)[:500])


def lost_connection(error: BaseException, base_url: str) -> InfrastructureFault | None:
    """The fault when ``error`` comes from a request to the proxy at ``base_url`` that got no answer at all.

    The exceptions of httpx and of OpenAI's client, and those that frameworks raise from them, carry the request. A
    timeout is the client's own: the engine's deadline comes first.
    """
    for link in _chain(error):
        if hasattr(link, "response") or isinstance(link, TimeoutError) or "Timeout" in type(link).__name__:
            return None
        if _requested(link).startswith(base_url):
            return InfrastructureFault("proxy", "connection", repr(link))
    return None


def _requested(error: BaseException) -> str:
    try:
        return str(getattr(getattr(error, "request", None), "url", ""))
    except RuntimeError:  # httpx: an error without its request
        return ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """``error`` and what it was raised from, newest first."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__
