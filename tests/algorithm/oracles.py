"""The losses of the papers as loops over floats with hand-derived gradients. Nothing here uses the package."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

Grid = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Case:
    """One micro-batch as nested lists, and the knobs of the loss."""

    logp: Grid
    behaviour: Grid
    advantages: Grid
    mask: Sequence[Sequence[bool]]
    entropy: Grid
    n_tokens: float
    n_rows: float
    reference: Grid = ()
    proximal: Grid = ()
    versions: Sequence[Sequence[int]] = ()
    chosen: Grid = ()
    version: int = 0
    knobs: dict = field(default_factory=dict)


def _log_ratio(p: float, q: float) -> tuple[float, float]:
    """Clamped log ratio and whether a gradient flows through it."""
    d = p - q
    return (d, 1.0) if -20 <= d <= 20 else (math.copysign(20.0, d), 0.0)


def ppo(ratio: float, a: float, low: float, high: float, c: float | None) -> tuple[float, float]:
    """Clipped token loss and its derivative with respect to the ratio."""
    if a > 0:
        return (-a * (1 + high), 0.0) if ratio > 1 + high else (-a * ratio, -a)
    if a < 0:
        if ratio < 1 - low:
            return -a * (1 - low), 0.0
        if c is not None and ratio > c:
            return -a * c, 0.0
        return -a * ratio, -a
    return 0.0, 0.0


def kl(d: float, flows: float, estimator: str) -> tuple[float, float]:
    value, grad = {
        "k1": (d, 1.0),
        "k2": (d * d / 2, d),
        "k3": (math.exp(-d) - 1 + d, 1 - math.exp(-d)),
    }[estimator]
    return (value, grad * flows) if -10 <= value <= 10 else (math.copysign(10.0, value), 0.0)


def _weights(case: Case, base: Grid, level: str, among: Sequence[Sequence[bool]]) -> list[list[float]]:
    """Ratios pi_prox / pi_behaviour of every token at a level; a row's ratio is that of its tokens ``among``."""
    out = []
    for row, brow, mrow in zip(base, case.behaviour, among, strict=True):
        ds = [p - b if m else 0.0 for p, b, m in zip(row, brow, mrow, strict=True)]
        value = {"sequence": sum(ds), "geometric": sum(ds) / max(sum(mrow), 1)}.get(level)
        out.append([math.exp(max(-20.0, min(20.0, d if value is None else value))) for d in ds])
    return out


def _judged(case: Case, base: Grid, rejection: str) -> list[list[float]]:
    """The value of every token that ``rejection`` compares with its bounds."""
    if rejection not in ("max", "mean_k2", "mean_k3", "max_k2", "max_k3"):
        return _weights(case, base, rejection, case.mask)
    out = []
    for row, brow, mrow in zip(base, case.behaviour, case.mask, strict=True):
        ds = [_log_ratio(p, b)[0] for p, b, m in zip(row, brow, mrow, strict=True) if m] or [0.0]
        each = {"k2": [d * d / 2 for d in ds], "k3": [math.exp(d) - 1 - d for d in ds]}.get(rejection[-2:])
        value = math.exp(max(ds)) if each is None else max(each) if "max" in rejection else math.fsum(each) / len(each)
        out.append([value] * len(row))
    return out


def sapo(ratio: float, a: float, tau: float) -> tuple[float, float]:
    """Gated token loss and its derivative with respect to the ratio (arXiv:2511.20347)."""
    p = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return -a * p * 4 / tau, -a * 4 * p * (1 - p)


def gmpo(ds: dict[int, float], adv: dict[int, float], low: float, high: float) -> tuple[float, dict[int, float]]:
    """Logarithm of the geometric mean of clipped ratios, and which tokens have a gradient (arXiv:2507.20673)."""
    clipped = {t: min(d, high) if adv[t] > 0 else max(d, -low) for t, d in ds.items()}
    return sum(clipped.values()) / max(len(ds), 1), {t: float(clipped[t] == ds[t]) for t in ds}


def loss_and_gradient(case: Case) -> tuple[float, list[list[float]], list[list[float]]]:
    """Loss and its gradients with respect to log-probs and entropy."""
    k = {
        "surrogate": "ppo", "eps_clip": 0.2, "eps_clip_higher": 0.28, "c_clip": None, "aggregation": "token_mean",
        "constant_length": None, "kl_ctl": 0.0, "kl_estimator": "k3", "kl_in": "loss", "entropy_coef": 0.0,
        "proximal": "behaviour", "importance_sampling": "truncate", "importance_level": "token",
        "behav_imp_weight_cap": 5.0, "rejection": "none", "rejection_lower": 0.0, "rejection_upper": 5.0,
        "behav_imp_weight_min": 0.0, "adv_norm": {},
    } | case.knobs  # fmt: skip
    grad = [[0.0] * len(row) for row in case.logp]
    grad_entropy = [[0.0] * len(row) for row in case.logp]
    total = 0.0
    prox = {"behaviour": case.behaviour, "recompute": case.proximal}.get(k["proximal"])
    if prox is None:
        prox = [
            [
                b + ((case.version - 1 - v) / (case.version - v) if case.version - v > 1 else 0.0) * (p - b)
                for p, b, v in zip(lrow, brow, vrow, strict=True)
            ]
            for lrow, brow, vrow in zip(case.logp, case.behaviour, case.versions, strict=True)
        ]
    base = case.logp if k["proximal"] == "behaviour" else prox
    judged = _judged(case, base, k["rejection"])
    normalised = any(level in ("batch", "group") for level in k["adv_norm"].values())
    kept = [
        [
            m and (k["rejection"] == "none" or k["rejection_lower"] <= r <= k["rejection_upper"])
            for m, r in zip(*rows, strict=True)
        ]
        for rows in zip(case.mask, judged, strict=True)
    ]
    weights = _weights(case, base, k["importance_level"], kept)

    def weight(i: int, t: int) -> float:
        """The factor of a token's policy loss."""
        if not kept[i][t]:
            return 0.0
        if k["proximal"] == "behaviour" or k["importance_sampling"] == "none":
            return 1.0
        w = weights[i][t]
        limited = min(max(w, k["behav_imp_weight_min"]), k["behav_imp_weight_cap"])
        return limited if k["importance_sampling"] == "truncate" or w == limited else 0.0

    for i, mrow in enumerate(case.mask):
        on = [t for t, m in enumerate(mrow) if m]
        if not on:
            continue
        n = len(on)
        ratios = {t: _log_ratio(case.logp[i][t], prox[i][t]) for t in on}
        trained = [t for t in on if weight(i, t) != 0]
        mean = sum(case.logp[i][t] - prox[i][t] for t in trained) / max(len(trained), 1)
        scale = {
            "token_mean": 1 / case.n_tokens,
            "sequence_mean": 1 / (n * case.n_rows),
            "constant_length": 1 / (case.n_rows * (k["constant_length"] or 1)),
        }[k["aggregation"]]
        adv = {t: case.advantages[i][t] for t in on}
        if k["kl_ctl"] and k["kl_in"] == "reward" and not normalised:
            sampled = case.proximal or case.behaviour
            kls = {u: kl(*_log_ratio(sampled[i][u], case.reference[i][u]), k["kl_estimator"])[0] for u in on}
            adv = {t: a - k["kl_ctl"] * sum(kls[u] for u in on if u >= t) for t, a in adv.items()}
        if k["surrogate"] == "clip_cov":
            adv = {t: 0.0 if case.chosen[i][t] else a for t, a in adv.items()}
        for t in on:
            a, w = adv[t], weight(i, t)
            d, flows = ratios[t]
            if k["surrogate"] == "gspo":
                row_log, row_flows = _log_ratio(mean, 0.0)
                ratio = math.exp(row_log)
                value, slope = ppo(ratio, a, k["eps_clip"], k["eps_clip_higher"], k["c_clip"])
                for u in trained if w else ():
                    grad[i][u] += scale * w * slope * ratio * row_flows / len(trained)
            elif k["surrogate"] == "cispo":
                ratio = max(1 - k["eps_clip"], min(1 + k["eps_clip_higher"], math.exp(d)))
                value = -ratio * a * case.logp[i][t]
                grad[i][t] += scale * w * -ratio * a
            elif k["surrogate"] == "sapo":
                value, slope = sapo(math.exp(d), a, k["tau_pos"] if a > 0 else k["tau_neg"])
                grad[i][t] += scale * w * slope * math.exp(d) * flows
            elif k["surrogate"] == "gmpo":
                ds = {u: case.logp[i][u] - prox[i][u] for u in trained}
                mean_clipped, moves = gmpo(ds, adv, k["eps_clip"], k["eps_clip_higher"])
                row_log, row_flows = _log_ratio(mean_clipped, 0.0)
                value = -a * math.exp(row_log)
                for u in trained if w else ():
                    grad[i][u] += scale * w * value * moves[u] * row_flows / len(trained)
            elif k["surrogate"] == "kl_cov":
                penalty = k["ppo_kl_coef"] * case.chosen[i][t]
                value = -a * math.exp(d) + penalty * abs(d)
                grad[i][t] += scale * w * (-a * math.exp(d) + penalty * (d > 0) - penalty * (d < 0)) * flows
            else:
                ratio = math.exp(d)
                value, slope = ppo(ratio, a, k["eps_clip"], k["eps_clip_higher"], k["c_clip"])
                grad[i][t] += scale * w * slope * ratio * flows
            total += scale * w * value
            if k["kl_ctl"] and k["kl_in"] == "loss" and kept[i][t]:
                value, slope = kl(*_log_ratio(case.logp[i][t], case.reference[i][t]), k["kl_estimator"])
                total += k["kl_ctl"] * scale * value
                grad[i][t] += k["kl_ctl"] * scale * slope
            if k["entropy_coef"] and kept[i][t]:
                total -= k["entropy_coef"] * case.entropy[i][t] / case.n_tokens
                grad_entropy[i][t] -= k["entropy_coef"] / case.n_tokens
    return total, grad, grad_entropy


def normalised_tokens(
    values: Sequence[float], groups: Sequence[int], mean: str, std: str, unbiased: bool, eps: float
) -> list[float]:
    """Token advantages minus their mean, divided by the std about that mean, one token at a time (AReaL's adv_norm)."""
    level = {"group": lambda g: [i for i, h in enumerate(groups) if h == g], "batch": lambda g: range(len(values))}
    centred = []
    for x, g in zip(values, groups, strict=True):
        peers = [values[i] for i in level[mean](g)] if mean != "none" else []
        flat = bool(peers) and len(set(peers)) == 1
        centred.append(0.0 if flat else x - (math.fsum(peers) / len(peers) if peers else 0.0))
    out = []
    for c, g in zip(centred, groups, strict=True):
        peers = [centred[i] for i in level[std](g)] if std != "none" else []
        spread = math.sqrt(math.fsum(p * p for p in peers) / max(len(peers) - int(unbiased), 1)) + eps
        out.append(c / spread if peers else c)
    return out


def advantages(
    rewards: Sequence[float],
    groups: Sequence[int],
    mean: str,
    std: str,
    leave_one_out: bool,
    eps: float,
    std_of: str = "centred",
) -> list[float]:
    """Advantages with baseline and scale by definition, one episode at a time."""

    def peers(i: int, level: str) -> list[int]:
        return [j for j, h in enumerate(groups) if level == "batch" or h == groups[i]]

    centred = []
    for i, r in enumerate(rewards):
        if mean == "none":
            b = 0.0
        else:
            among = [rewards[j] for j in peers(i, mean) if not (leave_one_out and j == i)]
            b = r if len({rewards[j] for j in peers(i, mean)}) == 1 else math.fsum(among) / len(among)
        centred.append(r - b)
    out = []
    for i, c in enumerate(centred):
        s = 1.0
        if std != "none":
            values = [(centred if std_of == "centred" else rewards)[j] for j in peers(i, std)]
            centre = 0.0 if std_of == "centred" else math.fsum(values) / len(values)
            s = math.sqrt(math.fsum((x - centre) ** 2 for x in values) / max(len(values) - 1, 1)) + eps
        out.append(c / s)
    return out
