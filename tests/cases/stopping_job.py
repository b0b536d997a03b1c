"""A main job without an engine that stands still for minutes: ``stopping_job.py POLICY ROOT PLACE WORD...``.

It prints ``at PLACE`` when it is there, in its third batch.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tau2_lightning import train
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.exit import exit_code, leave
from tests.cases.runs import WORDS
from tests.cases.stopping import Interrupted
from tests.jobs import own_words


def main(policy: str, root: str, place: str, *words: str) -> int:
    def stand_still() -> None:
        print(f"at {place}", flush=True)
        for _ in range(3000):
            time.sleep(0.05)

    Interrupted(place, stand_still).install(pytest.MonkeyPatch())
    cache = f"cache_dir={Path(root) / 'cache'}"
    config = load_config([*own_words(Path(policy), Path(root)), *WORDS, cache, *words], check=False)
    return exit_code(lambda: train.run(config))


if __name__ == "__main__":
    leave(main(*sys.argv[1:]))
