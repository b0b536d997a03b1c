"""What a refused request says about the next try."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

_REFUSALS = frozenset({429, 529})


def retry_after_s(headers: Mapping[str, str], *, now: Callable[[], float] = time.time) -> float | None:
    """Seconds until the next try, by the answer's headers; None where they say nothing that can be read.

    Reads ``retry-after-ms`` (OpenAI's) and ``Retry-After``: seconds, or an HTTP date (RFC 9110, 10.2.3).
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = headers.get(name)
        if text is None:
            continue
        try:
            seconds = float(text) / unit
        except ValueError:
            seconds = _until(text, now())
        if 0.0 <= seconds < float("inf"):
            return seconds
    return None


def _until(date: str, now: float) -> float:
    """Seconds until an HTTP date, 0 when it has passed, -1 when it is none."""
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return -1.0


def headers_of(error: BaseException) -> Mapping[str, str]:
    """The headers of the answer behind an error of openai or litellm, names in lower case; {} without an answer."""
    answer: Any = getattr(error, "response", None)
    found = getattr(answer, "headers", None) or getattr(error, "litellm_response_headers", None) or {}
    return {str(name).lower(): str(value) for name, value in dict(found).items()}


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error of openai or litellm, or None."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def is_refusal(error: BaseException) -> bool:
    """Whether the endpoint asks for fewer requests: 429, 529 (overloaded), or a 503 that names a time."""
    status = status_of(error)
    return status in _REFUSALS or (status == 503 and retry_after_s(headers_of(error)) is not None)
