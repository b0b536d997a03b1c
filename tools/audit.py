"""Ask for known vulnerabilities of the installed distributions, but for named exceptions.

    python tools/audit.py [--exceptions tools/audit_exceptions.txt]

It runs pip-audit, which needs the network. Exits with 0 when nothing is known, 1 when something is, 2 when the
exceptions cannot be read or one of them has ended, and 3 when there was no answer.
"""

from __future__ import annotations

import argparse
import datetime
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

EXCEPTIONS = Path(__file__).with_name("audit_exceptions.txt")
IDENTIFIER = re.compile(r"GHSA-[0-9a-z]{4}-[0-9a-z]{4}-[0-9a-z]{4}|PYSEC-\d{4}-\d+|CVE-\d{4}-\d{4,}")
SHORTEST_REASON = 15
SECONDS = 600.0


@dataclass(frozen=True)
class Accepted:
    """A vulnerability that is accepted until the end of ``last_day``."""

    identifier: str
    package: str
    last_day: datetime.date
    reason: str


def read(text: str) -> list[Accepted]:
    """The exceptions of a file's ``text``. Raises ValueError, naming the line, for one that is not of the form."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = line.split(maxsplit=3)
        if len(fields) < 4 or not IDENTIFIER.fullmatch(fields[0]):
            raise ValueError(f"line {number} is not: identifier, distribution, last day, reason")
        if len(fields[3]) < SHORTEST_REASON:
            raise ValueError(f"line {number} gives no reason")
        try:
            last_day = datetime.date.fromisoformat(fields[2])
        except ValueError:
            raise ValueError(f"line {number}: {fields[2]} is no day, such as 2027-01-31") from None
        found.append(Accepted(fields[0], fields[1], last_day, fields[3]))
    return found


def ended(accepted: list[Accepted], today: datetime.date) -> list[Accepted]:
    """Those whose last day has passed."""
    return [one for one in accepted if one.last_day < today]


def command(accepted: list[Accepted]) -> list[str]:
    """The command line of pip-audit."""
    ignored = [word for one in accepted for word in ("--ignore-vuln", one.identifier)]
    return [sys.executable, "-m", "pip_audit", "--local", "--skip-editable", "--progress-spinner=off", *ignored]


def main() -> int:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exceptions", type=Path, default=EXCEPTIONS)
    given = parser.parse_args()
    try:
        accepted = read(given.exceptions.read_text())
    except (OSError, ValueError) as error:
        print(f"error: {given.exceptions}: {error}", file=sys.stderr)
        return 2
    if late := ended(accepted, datetime.datetime.now(datetime.UTC).date()):
        print(f"error: the exception for {late[0].identifier} ended on {late[0].last_day}", file=sys.stderr)
        return 2
    try:
        done = subprocess.run(command(accepted), capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        print(f"error: no answer within {SECONDS:g} s", file=sys.stderr)
        return 3
    print(done.stdout + done.stderr)
    # pip-audit ends with 1 in both cases; only an answer has a table, or this line.
    answered = "vulnerabilit" in done.stdout + done.stderr
    if done.returncode and not answered:
        print("error: the service did not answer, so nothing is known", file=sys.stderr)
        return 3
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
