"""The exceptions of `make audit` are of their form: identifier, distribution, last day, reason."""

from __future__ import annotations

import datetime
from importlib.metadata import PackageNotFoundError, version

import pytest

from tools import audit


def test_the_exceptions_of_the_project_are_of_the_form() -> None:
    for one in audit.read(audit.EXCEPTIONS.read_text()):
        try:
            assert version(one.package)
        except PackageNotFoundError:
            pytest.fail(f"{one.package} is not installed, so {one.identifier} needs no exception")


LINE = "GHSA-ab12-cd34-ef56  jinja2  2027-01-31  templates of others run in a sandbox only"


def test_a_line_is_read() -> None:
    (one,) = audit.read(f"# comment\n\n{LINE}\n")
    assert (one.identifier, one.package, one.last_day) == ("GHSA-ab12-cd34-ef56", "jinja2", datetime.date(2027, 1, 31))
    assert audit.command([one])[-2:] == ["--ignore-vuln", "GHSA-ab12-cd34-ef56"]
    assert audit.ended([one], datetime.date(2027, 1, 31)) == []
    assert audit.ended([one], datetime.date(2027, 2, 1)) == [one]


@pytest.mark.parametrize(
    "line",
    ["jinja2", "GHSA-1 jinja2 2027-01-31 a reason that is long enough", LINE.replace("2027-01-31", "soon"),
     "CVE-2026-12345 jinja2 2027-01-31 no", "CVE-2026-12345 jinja2 2027-01-31"],
)  # fmt: skip
def test_a_line_of_another_form_is_refused(line: str) -> None:
    with pytest.raises(ValueError, match="line 1"):
        audit.read(line)
