"""Shared by all tests: an environment in which nothing reaches out."""

import os

import pytest
from hypothesis import settings

from tau2_lightning.run.exit import leave

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A busy machine is slow, not wrong.
settings.register_profile("tests", deadline=None)
settings.load_profile("tests")

_status = pytest.StashKey[int]()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    session.config.stash[_status] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The closing line of the session stays the last one on screen (see ``leave``)."""
    if _status in config.stash:
        leave(config.stash[_status])
