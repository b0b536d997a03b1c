"""How many injected faults of the simulated user the rules find, and how many clean dialogues they accuse.

`python -m benchmarks.user_faults` prints a table by kind for three sets of texts: those the rules were written with
(development), were mended with (seen), and texts that were written afterwards (held out). ``right`` needs the kind and
the turn; ``others`` are dialogues with a fault of another kind too. The last line is JSON: ratios, and what they aim
at.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.user_fault_dialogues import cases, enriched, played_dialogues, verdict
from benchmarks.user_fault_held_out import HELD_OUT
from benchmarks.user_fault_second import SECOND
from benchmarks.user_fault_seen import SEEN
from benchmarks.user_fault_texts import DEVELOPMENT, Texts
from tau2_lightning.environment.user_faults import KINDS, Scenario, find_user_faults

AIMS = {"found": 0.95, "false_alarms_at_most": 0.01}


def found_by_kind(texts: Texts, count: int, seed: int) -> tuple[dict[str, tuple[int, int, int]], list[str]]:
    """(right, injected, dialogues with other kinds too) by kind, and the faults that were not found."""
    right, injected, others = Counter[str](), Counter[str](), Counter[str]()
    missed = []
    for case in cases(count, texts, seed):
        assert case.kind is not None
        found = find_user_faults(case.scenario, case.messages)
        injected[case.kind] += 1
        others[case.kind] += any(fault.kind != case.kind for fault in found)
        if verdict(found, case):
            right[case.kind] += 1
        else:
            asked, said = case.messages[case.turn - 1]["content"], case.messages[case.turn]["content"]
            missed.append(f"{case.kind}: {asked!r} -> {said!r}; found {found}")
    return {kind: (right[kind], injected[kind], others[kind]) for kind in KINDS}, missed


def false_alarms(count: int, seed: int, texts: Texts | None = None) -> list[str]:
    """The faults found in ``count`` clean dialogues; with ``texts``, in the same with a talkative user."""
    rng = random.Random(seed)
    alarms = []
    for case in played_dialogues(count, seed):
        if texts is not None:
            case = enriched(case, texts, rng)
        alarms += [f"{found}" for found in [find_user_faults(case.scenario, case.messages)] if found]
    return alarms


def recorded(path: Path) -> Iterator[tuple[Scenario, list[dict[str, Any]]]]:
    """(scenario, messages) of a file of tau-bench's ``historical_trajectories``: real language models as users."""
    for run in json.loads(path.read_text()):
        messages = [{"role": "assistant", "content": "Hi! How can I help you today?"}]
        for message in run["traj"][1:]:
            calls = [{"name": call["function"]["name"]} for call in message.get("tool_calls") or ()]
            messages.append({"role": message["role"], "content": message.get("content"), "tool_calls": calls or None})
        instructions = run["info"]["task"]["instruction"]
        yield Scenario(instructions, facts=instructions), messages


def print_recorded(path: Path) -> None:
    """Print every fault in recorded dialogues, for a person to judge, and how many dialogues have one."""
    dialogues = list(recorded(path))
    accused = 0
    for scenario, messages in dialogues:
        faults = find_user_faults(scenario, messages)
        accused += bool(faults)
        for fault in faults:
            print(f"{fault.kind}: {fault.evidence!r} in {messages[fault.turn]['content']!r}")
    print(f"{accused} of {len(dialogues)} recorded dialogues have a fault of the user")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="injected faults, and clean dialogues")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="print what was missed and what was accused")
    parser.add_argument("--recorded", type=Path, help="a file of tau-bench's historical_trajectories; judges it only")
    arguments = parser.parse_args()
    if arguments.recorded is not None:
        print_recorded(arguments.recorded)
        return
    ratios: dict[str, float] = {}
    for name, texts in (("development", DEVELOPMENT), ("seen", SEEN), ("seen_second", SECOND), ("held_out", HELD_OUT)):
        table, missed = found_by_kind(texts, arguments.count, arguments.seed)
        print(f"{name:20s} {'right':>7s} {'injected':>9s} {'others':>7s}")
        for kind, (right, injected, others) in table.items():
            print(f"  {kind:18s} {right:7d} {injected:9d} {others:7d}")
        ratios[f"found_{name}"] = sum(right for right, _, _ in table.values()) / arguments.count
        talkative = false_alarms(arguments.count, arguments.seed, texts)
        ratios[f"false_alarms_talkative_{name}"] = len(talkative) / arguments.count
        if arguments.show:
            print("\n".join([*missed, *talkative]))
    alarms = false_alarms(arguments.count, arguments.seed)
    ratios["false_alarms_played"] = len(alarms) / arguments.count
    if arguments.show:
        print("\n".join(alarms))
    aims = {name: AIMS["found" if name.startswith("found") else "false_alarms_at_most"] for name in ratios}
    print(json.dumps({"ratios": ratios, "aims": aims}))


if __name__ == "__main__":
    main()
