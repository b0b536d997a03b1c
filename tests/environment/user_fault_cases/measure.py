"""Counts the injected faults of the user that are found, and the clean dialogues in which one is found."""

from __future__ import annotations

import random
from collections import Counter

from tau2_lightning.environment.user_faults import KINDS, find_user_faults

from .dialogues import cases, enriched, played_dialogues, verdict
from .texts import Texts


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
    """The faults found in ``count`` clean dialogues, which have added turns if ``texts`` are given."""
    rng = random.Random(seed)
    alarms = []
    for case in played_dialogues(count, seed):
        if texts is not None:
            case = enriched(case, texts, rng)
        alarms += [f"{found}" for found in [find_user_faults(case.scenario, case.messages)] if found]
    return alarms
