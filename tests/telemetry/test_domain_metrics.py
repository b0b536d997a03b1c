"""A mixed batch has metrics for each domain; a batch of one domain has no additional ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.telemetry.step_metrics import domain_metrics, rollout_metrics
from tests.fake_service import group


def test_a_mixed_batch_is_told_by_domain() -> None:
    retail = replace(group(0, [1.0, 0.0]), domain="retail", excluded=Counter({"user:timeout": 2}))
    airline = replace(group(1, [1.0, 1.0]), domain="airline")
    collection = Collection((retail,), (airline,))
    found = domain_metrics(collection)
    assert found["rollout/retail/reward"] == 0.5 and found["rollout/airline/reward"] == 1.0
    assert (found["rollout/retail/groups_kept"], found["rollout/airline/groups_kept"]) == (1, 0)
    assert (found["rollout/retail/excluded"], found["rollout/airline/groups"]) == (2, 1)
    assert found.items() <= rollout_metrics(collection, 1.0).items()
    assert domain_metrics(Collection((retail,))) == {} == domain_metrics(Collection((group(0, [1.0, 0.0]),)))
