"""The engine's log-probs of each family before and after a weight sync, against the trainer's, in float32.

`python -m tools.models_table --sync` runs the same measurement and writes docs/models.json.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.family_sync import measure, tolerance
from tests.strategy.families.models import CONFIGS
from tools.models_table import NEEDED

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("name", CONFIGS)
async def test_the_engine_serves_what_the_trainer_sends(name: str, tmp_path: Path) -> None:
    if package := NEEDED.get(name):
        pytest.importorskip(package, reason="vLLM imports it for this family", exc_type=ImportError)
    found, allowed = await measure(name, tmp_path), tolerance(name)
    assert found["before"] < allowed and found["after"] < allowed
    assert found["stale"] > 10 * allowed, "control: the new weights are far from the old ones"
