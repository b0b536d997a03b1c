"""Ranks get torchrun's variables; nodes find each other and wait; errors name the rank that failed."""

from __future__ import annotations

import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tau2_lightning.config.allocation import Allocation
from tau2_lightning.errors import DeadlineExceeded, InfrastructureFault
from tau2_lightning.launch import node
from tau2_lightning.launch.node import NodeTask, rank_variables, resumed, run_node
from tau2_lightning.launch.placement import place
from tau2_lightning.launch.ranks import Job, global_rank
from tau2_lightning.launch.rendezvous import Rendezvous


def task(tmp_path: Path, *words: str, timeout: float = 20.0) -> NodeTask:
    return NodeTask("j-0", words, str(tmp_path), str(tmp_path / "run"), "key", timeout)


@pytest.fixture
def ranks_run(monkeypatch):
    """Ranks run this program instead of the trainer."""

    def use(program: str) -> None:
        monkeypatch.setattr(node, "command", lambda task: [sys.executable, "-c", program])

    return use


def both_nodes(task: NodeTask, text: str, gpus: int = 0) -> list[object]:
    placement = place(Allocation.parse(text), 2, gpus)
    results: list[object] = [None, None]

    def one(index: int) -> None:
        try:
            results[index] = run_node(task, index, placement, "127.0.0.1")
        except Exception as error:  # noqa: BLE001  # the test looks at it
            results[index] = error

    threads = [threading.Thread(target=one, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


def test_ranks_of_two_nodes_find_each_other(tmp_path, ranks_run):
    ranks_run(
        "import os, pathlib, json\n"
        "names = 'RANK LOCAL_RANK WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT TORCHELASTIC_RUN_ID'.split()\n"
        "pathlib.Path('rank-' + os.environ['RANK']).write_text(json.dumps({n: os.environ[n] for n in names}))"
    )
    assert both_nodes(task(tmp_path), "vllm:d1+archon:d4") == [0, 0]
    import json

    seen = [json.loads((tmp_path / f"rank-{rank}").read_text()) for rank in range(4)]
    assert [(one["RANK"], one["LOCAL_RANK"], one["GROUP_RANK"]) for one in seen] == [
        ("0", "0", "0"), ("1", "1", "0"), ("2", "0", "1"), ("3", "1", "1"),
    ]  # fmt: skip
    assert {one["WORLD_SIZE"] for one in seen} == {"4"}
    assert len({(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in seen}) == 1


def test_a_node_of_engines_only_ends_with_the_run(tmp_path, ranks_run):
    ranks_run("pass")
    assert both_nodes(task(tmp_path), "vllm:d2+archon:d2", gpus=2) == [0, 0]


def test_a_rank_that_fails_is_named_and_its_siblings_end(tmp_path, ranks_run):
    ranks_run(
        "import os, pathlib, sys, time\n"
        "pathlib.Path('pid-' + os.environ['RANK']).write_text(str(os.getpid()))\n"
        "while os.environ['RANK'] == '0' or not os.path.exists('pid-0'): time.sleep(0.05)\n"
        "sys.exit(3)"
    )
    placement = place(Allocation.parse("vllm:d1+archon:d2"), 1, 0)
    with pytest.raises(InfrastructureFault, match=r"rank 1: exit: ended with code 3 on node 0"):
        run_node(task(tmp_path), 0, placement, "127.0.0.1")
    sibling = int((tmp_path / "pid-0").read_text())
    assert not Path(f"/proc/{sibling}").exists()


def test_a_node_that_does_not_come_is_named(tmp_path):
    placement = place(Allocation.parse("vllm:d1+archon:d2"), 2, 0)
    with pytest.raises(DeadlineExceeded, match=r"node-1: timeout: no answer within 0\.3 s"):
        run_node(task(tmp_path, timeout=0.3), 0, placement, "127.0.0.1")


def test_variables_of_a_trainer_on_the_second_node():
    placement = place(Allocation.parse("vllm:d4+archon:d4"), 2, 4)
    job = Job("j", 1, ("a:1", "b:2"))
    variables = rank_variables(placement, 2, ("b", 9), job, "secret")
    assert variables["RANK"] == "2" and variables["GROUP_RANK"] == "0" and variables["LOCAL_WORLD_SIZE"] == "4"
    assert variables["MASTER_ADDR"] == "b"


def test_a_job_survives_the_environment(monkeypatch):
    job = Job("j", 1, ("a:1", "b:2"))
    monkeypatch.setenv("TAU2_LIGHTNING_JOB", job.to_text())
    assert Job.current() == job


def test_the_rank_is_whoever_launched_it_says():
    assert global_rank({}) == 0
    assert global_rank({"LOCAL_RANK": "1"}) == 1
    assert global_rank({"LOCAL_RANK": "1", "SLURM_PROCID": "3"}) == 3
    assert global_rank({"LOCAL_RANK": "1", "SLURM_PROCID": "1", "RANK": "5"}) == 5


def test_a_run_that_starts_again_resumes_once_it_has_a_checkpoint_of_its_own(tmp_path):
    again = replace(task(tmp_path, "a=1", "ckpt_path=x"), resume_after=1000.0)
    assert resumed(again) == again
    checkpoint = tmp_path / "run" / "checkpoints" / "step1.ckpt"
    checkpoint.mkdir(parents=True)
    assert resumed(again) == again  # the checkpoint is incomplete
    (checkpoint / "meta.pt").touch()
    os.utime(checkpoint, (900, 900))
    assert resumed(again) == again  # the checkpoint is of an earlier job
    os.utime(checkpoint, (1100, 1100))
    assert resumed(again).words == ("a=1", "ckpt_path=x", "ckpt_path=last")
    assert resumed(replace(again, resume_after=None)).words == ("a=1", "ckpt_path=x")


def test_cards_are_whole_or_absent(tmp_path):
    rendezvous = Rendezvous(tmp_path / "m")
    assert rendezvous.look("x") is None
    rendezvous.put("x", {"a": 1})
    assert rendezvous.wait("x", 1.0) == {"a": 1}
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["x"]
