"""How OpenMP's threads wait: set before torch is imported, and only where the user has not."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SHOW = """
import json, os, sys
import tau2_lightning
assert "torch" not in sys.modules
print(json.dumps({name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}))
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({}, ("PASSIVE", "1000")),
        ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7")),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None)),
    ],
)
def test_threads_sleep_soon_unless_told_otherwise(given: dict[str, str], found: tuple[str, str | None]) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names} | given
    done = subprocess.run([sys.executable, "-c", SHOW], env=environment, capture_output=True, text=True, check=True)
    assert tuple(json.loads(done.stdout)[name] for name in names) == found
