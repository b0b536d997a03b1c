"""Failed requests to a model of the environment: which are worth another try, and their words for counting."""

from __future__ import annotations

import openai

from .retry_after import is_refusal, status_of


class BadReply(Exception):
    """The model's answer has no form that can be used. Another try may succeed. ``cause`` is the word for counting."""

    def __init__(self, message: str, cause: str = "bad_reply") -> None:
        self.cause = cause
        super().__init__(message)


def cause_of(error: BaseException) -> str:
    """A short stable word for counting a failed request."""
    if isinstance(error, BadReply):
        return error.cause
    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return "timeout"
    if is_refusal(error):
        return "rate_limited"
    status = status_of(error)
    if status is not None and not isinstance(error, openai.APIConnectionError):
        return f"http_{status}"
    if isinstance(error, openai.APIConnectionError | ConnectionError):
        return "connection"
    return type(error).__name__


def worth_retrying(error: BaseException) -> bool:
    """Whether the same request may succeed another time."""
    if isinstance(error, BadReply):
        return True
    status = status_of(error)
    if status is not None:
        return status in (408, 409, 425, 429) or status >= 500
    return isinstance(error, openai.APIConnectionError | ConnectionError | TimeoutError)
