"""Measures how many injected faults of the simulated user the rules find, and how many clean dialogues they flag.

`python -m benchmarks.user_faults` prints a table by kind, for the texts of all sets together; `--sets` adds one for
each set (`tests/environment/user_fault_cases/sets.py` says how a new set measures the rules at first sight). ``right``
requires the kind and the turn; ``others`` are dialogues in which the rules also report another kind. The
last line is JSON: ``ratios`` and their ``aims``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tau2_lightning.environment.user_faults import Scenario, find_user_faults
from tests.environment.user_fault_cases.measure import false_alarms, found_by_kind
from tests.environment.user_fault_cases.sets import ALL, SETS

AIMS = {"found": 0.95, "false_alarms_at_most": 0.01}


def recorded(path: Path) -> Iterator[tuple[Scenario, list[dict[str, Any]]]]:
    """Yield (scenario, messages) of a file of tau-bench's ``historical_trajectories``; its users are real models."""
    for run in json.loads(path.read_text()):
        messages: list[dict[str, Any]] = [{"role": "assistant", "content": "Hi! How can I help you today?"}]
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
    parser.add_argument("--sets", action="store_true", help="measure each set of texts by itself, too")
    parser.add_argument("--show", action="store_true", help="print what was missed and what was accused")
    parser.add_argument("--recorded", type=Path, help="a file of tau-bench's historical_trajectories; judges it only")
    arguments = parser.parse_args()
    if arguments.recorded is not None:
        print_recorded(arguments.recorded)
        return
    chosen = {"all": ALL, **(SETS if arguments.sets else {})}
    ratios: dict[str, float] = {}
    for name, texts in chosen.items():
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
