"""What runs inside SGLang's environment: the middleware it loads, and the parts that stand in for missing ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tau2_lightning.rollout.engine.in_sglang import without_kernels
from tau2_lightning.rollout.engine.sglang.command import PROGRAM

MIDDLEWARE = """
import runpy, sys
launch = runpy.run_path(sys.argv[1])
print([each.__name__ for each in launch["middleware"]()])
print([name for name in sys.modules if name.startswith(("tau2_lightning", "vllm"))])
"""


def test_the_middleware_is_found_without_this_package():
    """SGLang's environment has neither this package nor its requirements on its path."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", MIDDLEWARE, str(PROGRAM)], capture_output=True, text=True, timeout=120,
        cwd=Path("/"), check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == ["['CpuSeconds', 'RequireKey']", "[]"]


def test_a_request_gets_its_slots():
    table = torch.zeros(3, 6, dtype=torch.int32)
    rows, start, end = torch.tensor([2, 0]), torch.tensor([1, 0]), torch.tensor([4, 2])
    without_kernels.kernels().assign_req_to_token_pool_cpu(rows, table, start, end, torch.tensor([5, 6, 7, 8, 9]), 6)
    assert table.tolist() == [[8, 9, 0, 0, 0, 0], [0] * 6, [0, 5, 6, 7, 0, 0]]


def test_other_kernels_say_that_they_are_missing():
    with pytest.raises(NotImplementedError, match="rotate_input_ids_cpu"):
        without_kernels.kernels().rotate_input_ids_cpu(1)


def test_pinned_memory_is_dropped_from_the_import_of_adapters_on():
    program = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import without_kernels as w\n"
        "hook = w.Unpinned(); sys.meta_path.insert(0, hook); before = torch.zeros\n"
        "assert hook.find_spec('sglang.srt.other', None) is None and torch.zeros is before\n"
        "assert hook.find_spec('sglang.srt.lora', None) is None and hook not in sys.meta_path\n"
        "assert torch.zeros(2, pin_memory=True).pin_memory().tolist() == [0, 0]\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(PROGRAM.parent)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
