"""Reading from a refused request when to retry."""

from __future__ import annotations

from email.utils import formatdate
from types import SimpleNamespace
from typing import Any

import pytest

from tau2_lightning.environment.retry_after import headers_of, is_refusal, retry_after_s

NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "30"}, 30.0),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after-ms": "soon", "retry-after": "7"}, 7.0),
        ({"retry-after": formatdate(NOW + 12, usegmt=True)}, 12.0),
        ({"retry-after": formatdate(NOW - 12, usegmt=True)}, 0.0),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "later"}, None),
        ({}, None),
    ],
)
def test_seconds_of_a_header(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, now=lambda: NOW) == seconds


class Refused(Exception):
    def __init__(self, status: int, **headers: str) -> None:
        self.status_code = status
        self.response: Any = SimpleNamespace(headers={name.replace("_", "-"): text for name, text in headers.items()})


def test_which_answers_ask_for_fewer_requests() -> None:
    assert headers_of(Refused(429, Retry_After="3")) == {"retry-after": "3"} and headers_of(ValueError()) == {}
    assert is_refusal(Refused(429)) and is_refusal(Refused(529)) and is_refusal(Refused(503, Retry_After="3"))
    assert not is_refusal(Refused(503)) and not is_refusal(Refused(500)) and not is_refusal(ValueError())
