"""Writes docs/models.md: which layouts, packing and adapters work for each family of models.

    python -m tools.models_table [--sync [FAMILY ...]]

Letters, packing and adapters are read from the code; tests/strategy/families tests each of them. With ``--sync`` the
engine's column is measured first, as tests/e2e/test_families.py does; docs/models.json keeps the results.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PAGE, RESULTS = Path("docs/models.md"), Path("docs/models.json")
# Families of which vLLM imports a package that not every installation has.
NEEDED = {"Qwen3.5": "torchvision"}
NOT_MEASURED = "not measured yet: run python -m tools.models_table --sync"
HEAD = """# Models

<!-- Written by tools/models_table.py from tau2_lightning/strategy/families. Change those, not this page. -->

This page says which layouts, packing and adapters work for each family of models. `actor.path` names a model: a folder
or a hub id.

- *d p t c e*: letters of the trainer's part of `allocation_mode`: data, pipeline, tensor, context, expert parallelism.
- *packing*: rows of a micro-batch are computed side by side, without padding (`actor.packing`).
- *sharing*: tokens that rows share are computed once ([shared prefixes](shared_prefixes.md)).
- *LoRA*: *Y* means that `actor.lora.target_modules=[all-linear]` works; *merged*, that it works with
  `actor.lora.sync=merged` only; *named*, that `target_modules` must list layers instead.
- *engine*: the largest difference (nats) between log-probs of an engine and of the trainer, in float32, after a weight
  sync. *bf16*: the engine computes in bfloat16, since vLLM's kernel for CPUs knows linear attention in no other dtype.
  That row was measured with torchvision installed, whose usual wheel does not import beside a CPU build of torch.

"""
TAIL = """
Families that are not in the table can be trained with d, and with c if they use transformers' attention interface
without sliding windows or capped logits. Their rows are computed with padding; a notice says so.

## Models with a text model inside

A configuration with a `text_config` describes a model that also reads images or sound. Its text model can be trained if
the family of the text model is in the table: Gemma 3 (4B and larger), Qwen3.5 and Mistral 3. Weights are sent to the
engine under the names in the folder's files, so the engine may serve the whole model. An export holds the text model
only. Adapters need `actor.lora.sync=merged`. Other such models are refused, among them Llama 4 and Qwen3-VL.

## Rotary embeddings

In transformers, the factors of "longrope" depend on the longest row of a batch, so the log-probs of a row depend on the
other rows. In this project one choice holds for a whole run: the long factors if `gconfig.max_tokens` is larger than
`original_max_position_embeddings` of the model, else the short ones. vLLM chooses in the same way by its
`max-model-len`, so serve an export with the same length. "dynamic" rope is refused.

## What is refused

`mode=plan` and every start refuse these, with the reason, before an engine starts or weights are read:

- quantised weights (MXFP4, FP8): the engine cannot load the trainer's weights into them;
- models and tokenizers that need their own Python code: such code is never run. A folder that names code is loaded
  without it if transformers has the classes;
- encoder-decoder models, and Gemma 3 with capped logits or bidirectional attention;
- `all-linear` for models whose experts take no adapters, and adapters that the engine does not take.

## How it is tested

The models are tiny: two layers with random weights, norms, biases and sinks, computed in float32. The rows are packed,
have different lengths, and are longer than a sliding window. For each Y, gradients are compared with those of plain
transformers, one row at a time, and differ by at most 2e-6. Letters run on two processes that read the model from
files. A control, which lets rows attend to each other, must fail. Each N is refused with the reason above.
"""


def page() -> str:
    """The page's text."""
    from tau2_lightning.strategy.fitting import LETTERS
    from tests.strategy.families.models import CONFIGS

    results = json.loads(RESULTS.read_text())
    rows: list[str] = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, make in CONFIGS.items():
        config = make(8)
        cells = _cells(config)
        cells["engine"] = ("Y" if "after" in results[name] else "not run", results[name].get("reason"))
        words = {"engine": _difference(name, results[name]["after"])} if "after" in results[name] else {}
        shown = [words.get(column, verdict) for column, (verdict, _) in cells.items()]
        rows.append(f"| {name} | `{config.model_type}` | " + " | ".join(shown) + " |")
        for column, (_, reason) in cells.items():
            if reason:
                reasons.setdefault((column, reason), []).append(name)
    head = ["model", "`model_type`", *LETTERS, "packing", "sharing", "LoRA", "engine"]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]
    why = [f"- {column}, {'; '.join(names)}: {reason}." for (column, reason), names in sorted(reasons.items())]
    return HEAD + "\n".join([*table, "", "Why not:", "", *why]) + "\n" + TAIL


def _difference(name: str, nats: float) -> str:
    from tests.e2e.family_sync import BFLOAT16

    return f"{nats:.0e}" + (" (bf16)" if name in BFLOAT16 else "")


def _cells(config: Any) -> dict[str, tuple[str, str | None]]:
    """For each column: the cell, and the reason if something is not provided."""
    import torch
    from transformers import AutoModelForCausalLM

    from tau2_lightning.errors import ConfigError
    from tau2_lightning.strategy.fitting import LETTERS, why_not, why_not_packed, why_not_shared
    from tau2_lightning.strategy.lora import LoRASettings, plan_adapters
    from tau2_lightning.strategy.preflight import unserved_adapters

    found = {letter: why_not(config, letter) for letter in LETTERS}
    found |= {"packing": why_not_packed(config), "sharing": why_not_shared(config)}
    cells = {column: ("N" if reason else "Y", reason) for column, reason in found.items()}
    try:
        with torch.device("meta"):
            plan = plan_adapters(AutoModelForCausalLM.from_config(config), LoRASettings(4, 8.0))
    except ConfigError as error:
        cells["LoRA"] = ("named", error.violations[0].problem)
        return cells
    layers: dict[str, list[str]] = {}
    for name, reason in unserved_adapters(config, plan).items():
        layers.setdefault(reason, []).append(name)
    why = "; ".join(f"{reason} ({', '.join(names)})" for reason, names in layers.items())
    cells["LoRA"] = ("merged", why) if layers else ("Y", None)
    return cells


def measure(names: list[str]) -> None:
    """Measure engines of the families ``names``, or of all families if it is empty, and keep the results."""
    from tests.e2e.family_sync import measure as of
    from tests.strategy.families.models import CONFIGS

    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in names or CONFIGS:
        if (package := NEEDED.get(name)) and find_spec(package) is None:
            print(f"{name}: keeps what {RESULTS} has, since {package} is not installed")
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = asyncio.run(of(name, Path(folder)))
        results[name] = {key: float(f"{value:.1e}") for key, value in found.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(results[name])}" for name in CONFIGS if name in results)
    RESULTS.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--sync"]:
        measure(sys.argv[2:])
    PAGE.write_text(page())
