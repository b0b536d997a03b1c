"""docs/metrics.md against what is logged, in both directions."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tau2_lightning.algorithm import CISPO, GRPO, GSPO, KLCov, dashboard, finalise
from tau2_lightning.algorithm.metrics import LAG_NAMES, NAMES
from tau2_lightning.batch.batch import Batch
from tau2_lightning.callbacks.scores import Scores
from tau2_lightning.environment.model_watch import ModelUse
from tau2_lightning.evaluation.evaluation import Evaluation
from tau2_lightning.evaluation.macro import macro_scalars
from tau2_lightning.rollout.collect.collector import Collection
from tau2_lightning.rollout.engine.statistics import EngineLoad, EngineReading, over_engines
from tau2_lightning.rollout.weights.sync_round import PARTS, SyncReport
from tau2_lightning.run.compose import load_config
from tau2_lightning.telemetry.step_metrics import model_metrics, overlap_metrics, rollout_metrics, router_metrics
from tau2_lightning.trajectory import EpisodeOutcome, Group, Rollout, Trajectory, Turn
from tests.batch.groups import loss_of

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()


def documented(section: str) -> list[str]:
    """Names of one section's first column; ``...`` repeats the name before it, ``{a,b}`` and ``{k}`` stay patterns."""
    body = re.search(rf"^## {re.escape(section)}.*?(?=^## |\Z)", PAGE, re.M | re.S)
    assert body, section
    names: list[str] = []
    for line in body.group().splitlines():
        if not line.startswith("| `"):
            continue
        for name in re.findall(r"`([^`]+)`", line.split(" | ")[0]):
            if name.startswith("..."):
                stem = re.sub(r"(/|_)[a-z]+$", "", names[-1])
                name = stem + name[3:]
            names.append(name)
    return names


def pattern(name: str) -> re.Pattern[str]:
    """``{mean,max}`` is a choice, ``{anything}`` one free part."""
    parts = re.split(r"\{([^}]*)\}", name)
    regex = ""
    for i, part in enumerate(parts):
        if i % 2 == 0:
            regex += re.escape(part)
        else:
            regex += "(" + "|".join(map(re.escape, part.split(","))) + ")" if "," in part else r"[^/]+"
    return re.compile(regex)


def check(section_names: list[str], logged: set[str]) -> None:
    patterns = {name: pattern(name) for name in section_names}
    undocumented = {n for n in logged if not any(p.fullmatch(n) for p in patterns.values())}
    unlogged = {n for n, p in patterns.items() if not any(p.fullmatch(name) for name in logged)}
    assert not undocumented, f"logged but not on the page: {sorted(undocumented)}"
    assert not unlogged, f"on the page but never logged: {sorted(unlogged)}"


def a_group() -> Group:
    def rollout(sample: int, reward: float) -> Rollout:
        ids = torch.arange(6, dtype=torch.int32).numpy()
        mask = torch.tensor([0, 0, 1, 1, 1, 1], dtype=torch.bool).numpy()
        row = Trajectory.of(ids, -0.5 * mask.astype(np.float32), mask.astype("int32") - 1, (Turn(2, 6),))
        outcome = EpisodeOutcome(
            "t", reward, "agent_stop", 3, 2, 1, True, False, "solo", {"no_tool_call": 1}, user_faults={"empty_turn": 1}
        )
        return Rollout("t", "0", sample, reward, (row,), outcome)

    return Group("0", "t", (rollout(0, 1.0), rollout(1, 0.0)), {"user:timeout": 1})


def test_the_loss_logs_what_the_page_says() -> None:
    logged: set[str] = set()
    for algorithm in (GRPO(kl_ctl=0.1, c_clip=3.0), GSPO(proximal="recompute"), CISPO(), KLCov()):
        batch = Batch.from_groups([a_group()], algorithm, version=9)
        for name in ("proximal_logprobs", "reference_logprobs"):
            batch = batch.with_column(name, {row.row_id: row.behaviour_logprobs for row in batch.rows})
        (mb,) = batch.microbatches(1000)
        _, metrics = loss_of(algorithm, mb["behaviour_logprobs"], mb["advantages"], mb)
        logged |= set(dashboard(finalise({k: float(v) for k, v in metrics.items()})))
    logged |= set(router_metrics(Batch.from_groups([a_group()], GRPO(), version=9)))
    names = documented("The loss") + documented("Sampler against trainer")
    elsewhere = {
        n
        for n in names
        if n.startswith(("optim/grad_norm", "optim/lr", "optim/skipped", "optim/step_kl", "telemetry/", "sync/"))
    }
    check([n for n in names if n not in elsewhere], logged)
    assert len(set(NAMES.values()) | set(LAG_NAMES.values())) == len(NAMES) + len(LAG_NAMES)


def test_rollouts_log_what_the_page_says() -> None:
    groups = (replace(a_group(), domain="airline"), replace(a_group(), domain="retail"))
    logged = set(rollout_metrics(Collection(groups, excluded=Counter({"user:timeout": 1})), 1.0))
    here = {n for n in logged if not n.startswith(("time/", "perf/"))}
    check(documented("Rollouts"), here)
    assert logged - here <= set(documented("Time and throughput"))


def test_the_use_of_models_logs_what_the_page_says() -> None:
    used = {f"user/{name}": value for name, value in vars(ModelUse(requests=3, cost=0.5)).items()}
    logged = model_metrics({"user/requests": 1.0}, used)
    check(documented("Models of the environment"), set(logged))
    assert logged["models/user/requests"] == 2.0


def test_the_load_of_engines_logs_what_the_page_says() -> None:
    load = EngineLoad()
    for hits in (0.0, 5.0):
        counters = {"prefix_queries": 2 * hits, "prefix_hits": hits, "preemptions": 0.0}
        load.add(EngineReading({"kv_usage": 0.5, "running": 1.0, "queue": 0.0}, counters))
    found = load.take()
    logged = set(over_engines({"0": found, "1": found})) | {"engine/cut_off"}
    check(documented("Engines"), logged)


def test_overlap_logs_what_the_page_says() -> None:
    logged = set(overlap_metrics(Collection((a_group(),)), waited=1.0, step=2.0, engine_idle=0.5))
    here = {n for n in logged if not n.startswith(("time/", "idle/"))}
    check(documented("Asynchronous collection"), here)
    assert logged - here == {n for n in documented("Time and throughput") if n.startswith(("time/wait", "idle/"))}


def test_a_weight_sync_logs_what_the_page_says() -> None:
    here = [name for name in documented("Time and throughput") if name.startswith(("time/sync/", "sync/"))]
    check(here, set(SyncReport(1, 0, {**dict.fromkeys(PARTS, 0.0), "total": 0.0}).metrics()))


def test_the_batch_has_the_statistics_of_the_page() -> None:
    statistics = {f"batch/{name}" for name in Batch.from_groups([a_group()], GRPO(), version=0).statistics}
    check(documented("The batch that is trained"), statistics)


def test_a_validation_logs_what_the_page_says() -> None:
    rollouts = [*a_group().rollouts, *a_group().rollouts]
    config = load_config(["domain=retail"], check=False)
    found = Evaluation.of("retail", "test", 4, rollouts, {"user:timeout": 1}, config, tasks=["t", "u"]).scalars()
    check(documented("Validation"), {name.removeprefix("eval/retail/test/") for name in found})


def test_a_validation_of_several_domains_logs_what_the_page_says() -> None:
    rollouts, config = [*a_group().rollouts, *a_group().rollouts], load_config(["domain=retail"], check=False)
    both = [Evaluation.of(domain, "test", 4, rollouts, {}, config) for domain in ("retail", "airline")]
    check(documented("Several domains"), {name.removeprefix("eval/macro/") for name in macro_scalars(both)})


def test_the_warm_start_logs_what_the_page_says() -> None:
    source = (Path(__file__).parents[1] / "tau2_lightning" / "warm_start" / "module.py").read_text()
    check(documented("The warm start"), set(re.findall(r'"(sft/[a-z_]+)"', source)))


def test_a_name_nobody_wrote_down_is_noticed() -> None:
    with pytest.raises(AssertionError, match="not on the page: \\['loss/new'\\]"):
        check(["loss/mean"], {"loss/mean", "loss/new"})
    with pytest.raises(AssertionError, match="never logged: \\['loss/old'\\]"):
        check(["loss/mean", "loss/old"], {"loss/mean"})


def test_summaries_are_what_the_page_says() -> None:
    scores = Scores()
    for step, value in ((0, 0.1), (5, 0.3)):
        scores.add(step, {"eval/mock/test/pass^1": value})
    check(documented("Summaries"), set(scores.summary()))
