"""The process from which tests fork others: it has one thread, and has imported what every process of ours imports.

Importing torch, transformers, Lightning and tau2 takes ten seconds; a fork takes a few milliseconds. A fork of the test
process itself would inherit the locks and the heap of its threads at whatever moment they are, and such processes died
in malloc now and then.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

import pytest

# Modules whose import starts no thread. What a run imports when it needs it is listed, too.
IMPORTS = [
    "torch.distributed",
    "transformers",
    "lightning",
    "pytest",
    "cloudpickle",
    "tau2_lightning.datamodule",
    "tau2_lightning.module",
    "tau2_lightning.strategy",
    "tau2_lightning.rank_zero",
    "tau2_lightning.callbacks",
    "tau2_lightning.run.opening",
    "tau2_lightning.run.policy",
    "tau2_lightning.run.setup",
    "tau2_lightning.run.stuck",
    "tau2_lightning.callbacks.checkpoints",
    "tau2_lightning.callbacks.exports",
    "tau2_lightning.callbacks.health",
    "tau2_lightning.callbacks.ranks",
    "tau2_lightning.callbacks.rollouts",
    "tau2_lightning.evaluation.report",
    "tau2_lightning.train",
    "transformers.models.qwen3.modeling_qwen3",
    "tests.fake_service",
    "tests.cases.stopping",
    "tests.strategy.tiny",
]


def fork_server() -> ForkServerContext:
    """The context of multiprocessing whose processes are forked from that process. It starts with the first of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # a test may have changed the folder
        forkserver.ensure_running()
    return context
