"""The page at the start of a run: engines, ranks, user, judge, tasks, files."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.start_page import print_start_page, spans, start_page


class Board:
    def show_dialogues(self, *_: Any, **__: Any) -> None: ...

    def keep_files(self, *_: Any, **__: Any) -> None: ...

    def keep_summary(self, *_: Any, **__: Any) -> None: ...

    def where(self) -> str:
        return "a board"


def page(*words: str, folder: RunFolder | None = None, checkpoint: str | None = None) -> dict[str, str]:
    config = load_config([*words], check=False)
    return dict(start_page(config, Path("/p/policy"), folder or RunFolder(Path("/runs/e/t")), checkpoint, [Board()]))


def test_engines_and_ranks_are_told_by_node_and_device() -> None:
    gpus = ["cluster.n_nodes=2", "cluster.n_gpus_per_node=4", "scheduler.type=slurm"]
    told = page("domain=mock", "allocation_mode=vllm:d2t2+archon:d4", *gpus)
    assert told["engines"] == "vllm:d2t2, 4 devices: node 0 gpu 0-3; log: logs/engine.log"
    assert told["trainer"] == "archon:d4, 4 devices: node 1 gpu 0-3"
    shared = page("domain=mock", "allocation_mode=vllm:d8|archon:d8", *gpus)
    assert shared["trainer"] == "archon:d8, 8 devices: node 0 gpu 0-3, node 1 gpu 0-3"


def test_on_cpu_processes_are_counted() -> None:
    told = page("domain=mock", "allocation_mode=vllm:d1+archon:d2", "trainer.accelerator=cpu")
    assert told["trainer"] == "archon:d2, 2 processes: node 0 cpu x 2"
    assert told["policy"] == "/p/policy (tiny, size s)"


def test_tasks_models_and_files_are_told() -> None:
    words = ["domain=retail", "econfig.user=llm", "econfig.user_llm=gpt-x", "econfig.user_llm_base_url=http://u:1/v1"]
    told = page(*words, "econfig.judge_llm=gpt-y", "econfig.solo_mode=false", "rollout.engine_urls=['http://e:1']")
    assert told["user"] == "gpt-x at http://u:1/v1" and told["judge"] == "gpt-y at its provider"
    assert told["plays"].startswith("tau2 retail, user: llm, train on split `train`, validate on ")
    assert told["engines"] == "http://e:1 (not started by this run)"
    assert "metrics/metrics.csv" in told["files"] and "rollouts/" in told["files"]
    assert told["look"] == "python -m tau2_lightning.report /runs/e/t --watch" and told["also"] == "a board"


def test_a_later_start_names_its_checkpoint_and_an_evaluation_has_no_trainer() -> None:
    told = page("domain=mock", folder=RunFolder(Path("/runs/e/t"), start=2), checkpoint="/runs/e/t/checkpoints/s4.ckpt")
    assert told["run"] == "/runs/e/t, start 2, from s4.ckpt"
    assert "trainer" not in page("domain=mock", "mode=validate")


@pytest.mark.parametrize(("terminal", "long_lines"), [(True, False), (False, True)])
def test_a_pipe_gets_one_line_for_each(terminal: bool, long_lines: bool) -> None:
    file = io.StringIO()
    console = Console(file=file, width=60, force_terminal=terminal, color_system=None)
    config = load_config(["domain=mock"], check=False)
    print_start_page(config, Path("/p"), RunFolder(Path("/runs/e/t")), None, [], console)
    assert any(len(line) > 60 for line in file.getvalue().splitlines()) is long_lines
    assert "files     metrics/" in file.getvalue() or terminal


def test_off_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    config = load_config(["domain=mock", "trainer.progress=off"], check=False)
    print_start_page(config, Path("/p"), RunFolder(Path("/runs/e/t")), None, [])
    assert capsys.readouterr().err == ""


def test_spans() -> None:
    assert [spans(one) for one in ([0], [0, 1, 2, 3], [3, 0, 1, 6], [])] == ["0", "0-3", "0-1,3,6", ""]
