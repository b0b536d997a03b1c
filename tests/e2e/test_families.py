"""The engine's log-probs of each family before and after a weight sync, against the trainer's, in float32.

`python -m tools.models_table --sync` runs the same measurement and writes docs/models.json.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.family_sync import TOLERANCE, measure
from tests.strategy.families.models import CONFIGS
from tools.models_table import NOT_SYNCED

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name not in NOT_SYNCED])
async def test_the_engine_serves_what_the_trainer_sends(name: str, tmp_path: Path) -> None:
    found = await measure(name, tmp_path)
    assert found["before"] < TOLERANCE and found["after"] < TOLERANCE
    assert found["stale"] > 100 * TOLERANCE, "control: the new weights are far from the old ones"
