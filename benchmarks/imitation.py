"""Measures how well the warm start imitates: the probability that it gives each decision of the complete demonstrator.

The telecom expert plays training tasks without leaving anything out. The warm-started policy (from the cache, or made
now) then gives the probability of each of the expert's calls. Decisions are grouped by ticket, the call before and the
call itself. A rare decision that the policy only guesses has its own row here, while a mean loss or accuracy hides it.
Calls to fixes that the demonstrations leave out are expected less often, by exactly that share.

    python benchmarks/imitation.py [--tasks 30] [--policy FOLDER] [key=value ...]        default: experiment=learn

The last line is JSON: the worst decision's probability over its share in the demonstrations, and the same for the first
calls of the fixes that the demonstrations leave out on purpose. Few demonstrations have those, so that figure is less
certain.
"""

from __future__ import annotations

import argparse
import json
import math
import random
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch

from tau2_lightning.environment import load_tasks
from tau2_lightning.environment.demonstrations import demonstrate
from tau2_lightning.environment.settings import environment_settings
from tau2_lightning.environment.telecom_expert import FIXES
from tau2_lightning.policy.dialogues import TextDialogue, encode_spans, render_spans
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.run.compose import load_config
from tau2_lightning.warm_start.make import warm_start_policy

AIMS = {"worst decision / demonstrations": ">= 0.9", "worst missing skill / demonstrations": ">= 0.75"}
FEW = 10  # decisions; a ratio of fewer is noise


class Decision(NamedTuple):
    """One kind of decision: the ticket's problem, the call before, and the call."""

    ticket: str
    after: str
    call: str


def called(message: dict[str, Any]) -> str:
    calls = message.get("tool_calls")
    return calls[0]["function"]["name"] if calls else "text"


def probabilities(policy: Any, tokenizer: Any, dialogue: TextDialogue) -> Iterator[float]:
    """Return the probability of each assistant turn, given the messages before it."""
    encoded = encode_spans(render_spans(dialogue, tokenizer.chat_template), tokenizer)
    ids = torch.from_numpy(encoded.token_ids).long()
    with torch.inference_mode():
        logits = policy(ids[None]).logits[0, :-1]
    likely = logits.log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    at = 0
    for acted, run in groupby(encoded.action_mask):  # between two turns there is always an answer
        size = len(list(run))
        if acted:
            yield math.exp(float(likely[at - 1 : at + size - 1].sum()))
        at += size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # The few service tasks get the same weight as the many picture-message tasks.
    parser.add_argument("--tasks", type=int, default=30, help="at most so many of each ticket")
    parser.add_argument("--policy", type=Path, help="a warm-started policy's folder")
    parser.add_argument("words", nargs="*", default=["experiment=learn"])
    arguments = parser.parse_args()
    config = load_config(arguments.words)
    settings, environment = config.warm_start, environment_settings(config.econfig)
    folder = arguments.policy or warm_start_policy(config)
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(folder)
    policy = AutoModelForCausalLM.from_pretrained(folder).float().eval()
    strata = defaultdict(list)
    rng = random.Random(0)
    for task in load_tasks(environment.domain, config.train_dataset.split, solo_mode=environment.solo_mode):
        strata[task.stratum].append(task)
    chosen = [task for tasks in strata.values() for task in rng.sample(tasks, min(len(tasks), arguments.tasks))]
    found: dict[Decision, list[float]] = defaultdict(list)
    for task in chosen:
        made, _ = demonstrate(environment, task, random.Random(0), 0.0, {})
        said = [message for message in made.messages if message["role"] == "assistant"]
        before = "the ticket"
        ticket = task.task_id[1:].partition("]")[0]
        dialogue = TextDialogue(made.messages, made.tools)
        for message, probability in zip(said, probabilities(policy, tokenizer, dialogue), strict=True):
            found[Decision(ticket, before, called(message))].append(probability)
            before = called(message)

    def demonstrated(call: str) -> float:
        if call not in FIXES:
            return 1.0
        return 1.0 - (settings.weak_skip if call in settings.weak_skills else settings.skip)

    rated = {decision: fmean(values) / demonstrated(decision.call) for decision, values in found.items()}
    print("| ticket | after | call | decisions | probability | demonstrated | ratio |\n|---|---|---|---|---|---|---|")
    for decision, ratio in sorted(rated.items(), key=lambda item: item[1]):
        values, share = found[decision], demonstrated(decision.call)
        print(f"| {' | '.join(decision)} | {len(values)} | {fmean(values):.3f} | {share:.2f} | {ratio:.3f} |")
    weak = [decision for decision in rated if decision.call in settings.weak_skills]
    # Only one demonstration in 16 calls a missing skill twice in a row.
    first = [decision for decision in weak if decision.after != decision.call and len(found[decision]) >= FEW]
    ratios = {"worst decision / demonstrations": min(rated[decision] for decision in rated if decision not in weak)}
    if first:
        ratios["worst missing skill / demonstrations"] = min(rated[decision] for decision in first)
    print(json.dumps({"ratios": {name: round(ratio, 3) for name, ratio in ratios.items()}, "aims": AIMS}))


if __name__ == "__main__":
    main()
