"""The screen of a command shows no notices of libraries that a user cannot act on."""

from __future__ import annotations

import subprocess
import sys
import warnings

import pytest

from tau2_lightning.telemetry.quiet import quiet_notices

#: What the probe of a plan imports where a template's calls are read by one of vLLM's parsers.
PROGRAM = """
import sys
from tau2_lightning.telemetry.quiet import quiet_notices
quiet_notices()
assert not {"vllm", "wandb", "transformers", "lightning"} & set(sys.modules)
import vllm.triton_utils, wandb
"""


def test_neither_triton_nor_wandb_speaks() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize(
    "text",
    [
        "torch.distributed is disabled, unavailable or uninitialized, assuming the intent is to load in one process.",
        "The 'repr' attribute with value False was provided to the `Field()` function, which has no effect",
    ],
)
def test_warnings_of_imports_and_exports_are_dropped_and_others_stay(text: str) -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        quiet_notices()
        warnings.warn(text, UserWarning, stacklevel=1)
        warnings.warn("the disk is nearly full", UserWarning, stacklevel=1)
    assert [str(one.message) for one in seen] == ["the disk is nearly full"]
