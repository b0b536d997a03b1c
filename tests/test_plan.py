"""``mode=plan`` shows the layout of every command the seeds give, and starts nothing."""

import pytest

from tau2_lightning import train
from tau2_lightning.allocation import Allocation
from tau2_lightning.launch.placement import place
from tau2_lightning.plan import device_rows

SEEDS = {
    "slurm": [
        "experiment_name=tau2-grpo", "trial_name=run-airline", "cluster.n_nodes=2", "cluster.n_gpus_per_node=8",
        "scheduler.type=slurm", "allocation_mode=sglang:d4t2+archon:d4p2t1", "econfig.domain=airline",
    ],
    "local": [
        "cluster.n_nodes=1", "cluster.n_gpus_per_node=2", "allocation_mode=sglang:d1+archon:d1",
        "train_dataset.batch_size=4", "gconfig.n_samples=4", "econfig.domain=airline",
    ],
    "proxy": [
        "scheduler.type=slurm", "econfig.domain=telecom", "econfig.solo_mode=true", "cluster.n_nodes=2",
        "allocation_mode=sglang:d4t2+archon:d4p1t2",
    ],
}  # fmt: skip


@pytest.mark.parametrize("words", SEEDS.values(), ids=SEEDS)
def test_every_seed_command_resolves(words, capsys):
    assert train.main([*words, "mode=plan"]) == 2  # no user, no Slurm: said below the plan
    shown = capsys.readouterr().out
    allocation = next(word for word in words if word.startswith("allocation_mode")).partition("=")[2]
    assert allocation in shown
    generation, training = allocation.split("+")
    assert shown.count(training + " ") - 1 >= Allocation.parse(allocation).training.world - 1
    assert generation in shown
    keys = {line.split("would not start here: ")[1].split("=")[0] for line in shown.splitlines() if "would not" in line}
    assert keys
    assert keys <= {"econfig.user_llm_base_url", "scheduler.type", "train_dataset.batch_size", "allocation_mode"}


def test_a_plan_that_starts_says_so(capsys):
    assert train.main(["mode=plan", "allocation_mode=vllm:d1+archon:d2p2t1"]) == 0
    shown = capsys.readouterr().out
    assert "would not start" not in shown
    assert "20 steps" in shown


def test_a_plan_names_what_is_missing(capsys):
    assert train.main(["mode=plan", "econfig.domain=airline"]) == 2
    assert "needs a user simulator" in capsys.readouterr().out


def test_unreadable_allocation(capsys):
    assert train.main(["mode=plan", "allocation_mode=vllm:d0+archon:d1"]) == 2
    assert "d0 is not positive" in capsys.readouterr().err


def test_places_cover_the_mesh_once():
    rows = device_rows(place(Allocation.parse("vllm:d2t2+archon:d2p2t2"), 3, 4))
    assert [row[0] for row in rows] == [f"node {n} gpu {g}" for n in range(3) for g in range(4)]
    trainer = [row[3] for row in rows if row[1].startswith("archon")]
    assert len(set(trainer)) == 8
    assert trainer[0] == "p0 d0 c0 t0"
    assert trainer[1] == "p0 d0 c0 t1"
    assert trainer[-1] == "p1 d1 c0 t1"
