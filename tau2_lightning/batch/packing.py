"""Which rows go together: balanced shards, packed or length-bucketed micro-batches. Pure functions of lengths."""

from __future__ import annotations

from collections.abc import Sequence


def balance(lengths: Sequence[int], world: int) -> list[list[int]]:
    """Deal rows to ``world`` ranks so that token counts are near equal: longest first, to the lightest rank.

    Deterministic; the heaviest rank holds at most 4/3 of the optimum (Graham 1969). Indices come back in order.
    """
    shards: list[list[int]] = [[] for _ in range(world)]
    loads = [0] * world
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        rank = min(range(world), key=lambda r: (loads[r], len(shards[r]), r))
        shards[rank].append(i)
        loads[rank] += lengths[i]
    return [sorted(shard) for shard in shards]


def plan_microbatches(
    lengths: Sequence[int], budget: int, count: int | None = None, *, packed: bool = False
) -> list[list[int]]:
    """Group rows so that each part stays within ``budget`` tokens; a row above the budget is its own part.

    ``packed`` parts count real tokens: the fewest parts that `balance` can make even. Otherwise they count padded
    tokens (``rows * longest``) and rows of similar length go together. With ``count``, exactly that many parts: the
    rows are dealt out anew or the largest parts halved, then empty parts added. Raises ValueError for a budget below 1
    or a ``count`` that the budget does not allow.
    """
    if budget < 1:
        raise ValueError(f"max_tokens_per_mb={budget}: a micro-batch needs at least one token")
    plan = _even(lengths, budget) if packed else _bucketed(lengths, budget)
    if count is None:
        return plan
    if len(plan) > count:
        raise ValueError(f"{len(plan)} micro-batches of {budget} tokens are needed, {count} were asked for")
    if packed and len(plan) < count:
        wider = balance(lengths, count)
        if _fits(wider, lengths, budget):
            return wider
    while len(plan) < count:
        splittable = [k for k, part in enumerate(plan) if len(part) > 1]
        if not splittable:
            return plan + [[] for _ in range(count - len(plan))]
        k = max(splittable, key=lambda k: (len(plan[k]) * max(lengths[i] for i in plan[k]), -k))
        half = (len(plan[k]) + 1) // 2
        plan[k : k + 1] = [plan[k][:half], plan[k][half:]]
    return plan


def _bucketed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    plan: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if plan and (len(plan[-1]) + 1) * lengths[plan[-1][0]] <= budget:
            plan[-1].append(i)
        else:
            plan.append([i])
    return plan


def _even(lengths: Sequence[int], budget: int) -> list[list[int]]:
    if not lengths:
        return []
    count = max(1, -(-sum(lengths) // budget))
    while not _fits(plan := balance(lengths, count), lengths, budget):
        count += 1
    return [part for part in plan if part]


def _fits(plan: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> bool:
    return all(len(part) <= 1 or sum(lengths[i] for i in part) <= budget for part in plan)
