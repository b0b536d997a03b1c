"""Settings of all tests: no network access, and no deadline for examples."""

import os

import pytest
from hypothesis import settings

from tau2_lightning.run.exit import leave

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# On a busy machine a slow example is no failure.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

_status = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End the process with ``leave``, so that the summary of the session stays the last line on screen."""
    if _status in config.stash:
        leave(config.stash[_status])
