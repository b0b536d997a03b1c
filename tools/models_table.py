"""Writes docs/models.md: what can be done with each family of models. `--sync` measures engines first.

    python -m tools.models_table [--sync [FAMILY ...]]

Letters, packing and adapters are read from the code; tests/strategy/families tests each of them. The engine's column is
measured as tests/e2e/test_families.py does, and kept in docs/models.json.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

PAGE, RESULTS = Path("docs/models.md"), Path("docs/models.json")
# Families that vLLM's engine for CPUs does not serve, and why.
NOT_SYNCED: dict[str, str] = {}
NOT_MEASURED = "not measured yet: run python -m tools.models_table --sync"
HEAD = """# Models

<!-- Written by tools/models_table.py from tau2_lightning/strategy/families. Change those, not this page. -->

This page says what can be done with each family of models. A folder or hub id is given as `actor.path`.

- *d p t c e*: letters of the trainer's part of `allocation_mode`: data, pipeline, tensor, context, expert parallelism.
- *packing*: rows of a micro-batch are computed side by side, without padding (`actor.packing`).
- *sharing*: tokens that rows share are computed once ([shared prefixes](shared_prefixes.md)).
- *LoRA*: `all-linear` in `actor.lora.target_modules`. *merged* means with `actor.lora.sync=merged` only; *named* means
  that layers must be named.
- *engine*: the largest difference between the log-probs of an engine and of the trainer, in float32, after new weights
  were sent.

"""
TAIL = """
Families that are not in the table train with d, and with c where their attention is transformers' common one. Their
rows are computed with padding; a notice says so.

## Models with a text model inside

Configurations with a `text_config` describe models that also see images. Their text model is trained when its family
is in the table: Gemma 3 (4B and larger), Qwen3.5 and Mistral 3. Weights are sent to the engine under the names that the
folder has, so the engine may serve the whole model. An export holds the text model alone. Adapters go to the engine
merged (`actor.lora.sync=merged`). Other such models are refused by name, among them Llama 4 and Qwen3-VL.

## Rotary embeddings

transformers chooses the factors of "longrope" by the longest row of a batch; then the log-probs of a row depend on the
rows beside it. Here one choice serves a whole run: the long factors when `gconfig.max_tokens` is more than the original
positions, else the short ones. vLLM chooses in the same way, by its `max-model-len`. Serve an export with the same
length. "dynamic" rope is refused.

## What is refused

`mode=plan` and every start name the reasons, before an engine is started or weights are read:

- weights that are quantised (MXFP4, FP8): the engine would not take what the trainer sends;
- models and tokenizers that need Python code of their own. Code of a model is never run. A folder that names code
  although transformers has the classes is loaded without it;
- encoder-decoder models, Gemma 3 with capped logits or bidirectional attention;
- `all-linear` where experts would be left out, and adapters that the engine does not take.

## How it is tested

Models are tiny and random, of two layers; all norms, biases and sinks are random, too. Computation is in float32. Rows
have different lengths, longer than a sliding window, and are packed. Each Y is compared with transformers and autograd
alone, one row at a time: gradients differ by at most 2e-6. Letters run on two processes that read the model from files.
A control joins the rows and must fail. Each N is refused with the reason above.
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
        words = {"engine": f"{results[name]['after']:.0e}"} if "after" in results[name] else {}
        shown = [words.get(column, verdict) for column, (verdict, _) in cells.items()]
        rows.append(f"| {name} | `{config.model_type}` | " + " | ".join(shown) + " |")
        for column, (_, reason) in cells.items():
            if reason:
                reasons.setdefault((column, reason), []).append(name)
    head = ["model", "`model_type`", *LETTERS, "packing", "sharing", "LoRA", "engine"]
    table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows]
    why = [f"- {column}, {'; '.join(names)}: {reason}." for (column, reason), names in sorted(reasons.items())]
    return HEAD + "\n".join([*table, "", "Why not:", "", *why]) + "\n" + TAIL


def _cells(config: Any) -> dict[str, tuple[str, str | None]]:
    """For each column: what the table says, and why not."""
    import torch
    from transformers import AutoModelForCausalLM

    from tau2_lightning.errors import ConfigError
    from tau2_lightning.strategy.families.registry import family_of
    from tau2_lightning.strategy.fitting import LETTERS, why_not, why_not_packed, why_not_shared
    from tau2_lightning.strategy.lora import LoRASettings, plan_adapters

    found = {letter: why_not(config, letter) for letter in LETTERS}
    found |= {"packing": why_not_packed(config), "sharing": why_not_shared(config)}
    cells = {column: ("N" if reason else "Y", reason) for column, reason in found.items()}
    family = family_of(config)
    refused = dict(family.no_adapters) if family is not None else {}
    try:
        with torch.device("meta"):
            plan = plan_adapters(AutoModelForCausalLM.from_config(config), LoRASettings(4, 8.0))
    except ConfigError as error:
        cells["LoRA"] = ("named", error.violations[0].problem)
        return cells
    names = sorted({name.rpartition(".")[2] for name in plan.layers} & set(refused))
    why = "; ".join(
        f"{reason} ({', '.join(n for n in names if refused[n] == reason)})" for reason in _each(refused, names)
    )
    cells["LoRA"] = ("merged", why) if names else ("Y", None)
    return cells


def _each(reasons: dict[str, str], names: list[str]) -> list[str]:
    return list(dict.fromkeys(reasons[name] for name in names))


def measure(names: list[str]) -> None:
    """Measure engines of these families, of all when there are none, and keep the results."""
    from tests.e2e.family_sync import measure as of
    from tests.strategy.families.models import CONFIGS

    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for name in names or CONFIGS:
        if name in NOT_SYNCED:
            results[name] = {"reason": NOT_SYNCED[name]}
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
