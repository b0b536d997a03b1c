"""``--multirun``: a child process and a run folder for each job, the worst exit code, and no job if one is wrong."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tau2_lightning import serve, sft, train
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.sweep import parent_of, sweep
from tests.programs import Forked

ROOT = Path(__file__).parents[2]
# This replaces the work of a job: it writes its words to a file and ends with the exit code that its seed gives.
FAKE = """
import json, os, sys, time
from pathlib import Path
words = dict(word.split("=", 1) for word in sys.argv[1:])
name = words["trial_name"].strip("'")
Path("jobs").mkdir(exist_ok=True)
secret = [f"in the variable: {word}" for word in json.loads(os.environ.get("TAU2_LIGHTNING_SECRET_WORDS", "[]"))]
Path("jobs", name).write_text(f"{os.getpid()} {os.getcwd()}\\n" + "\\n".join([*sys.argv[1:], *secret]))
try:
    time.sleep(float(os.environ.get("JOB_SECONDS", "0")))
except KeyboardInterrupt:
    Path("jobs", name).write_text("interrupted")
    sys.exit(130)
sys.exit({"2": 1, "3": 3}.get(words["seed"], 0))
"""
START = """
import sys
from tau2_lightning.run.cli import Command, run_command
sys.exit(run_command(Command("fake_job", "", lambda words: 0), sys.argv[1:]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    (made / "fake_job.py").write_text(FAKE)
    monkeypatch.chdir(made)
    return made


def start(folder: Path, *words: str, **environment: str) -> Forked:
    """The sweep; what it prints goes into files beside ``folder``."""
    variables = {"PYTHONPATH": f"{folder}:{ROOT}"} | environment
    return Forked(["-c", START, *words], folder.parent / "out.txt", folder.parent / "err.txt", variables)


def finished(folder: Path, *words: str, **environment: str) -> tuple[int, str, str, dict[str, list[str]]]:
    """Exit code, both outputs, and the lines each job wrote."""
    with start(folder, *words, **environment) as process:
        code = process.wait()
    out, err = ((folder.parent / name).read_text() for name in ("out.txt", "err.txt"))
    jobs = {path.name: path.read_text().splitlines() for path in sorted(folder.glob("jobs/*"))}
    return code, out, err, jobs


def test_every_job_runs_in_a_process_of_its_own_and_the_worst_code_counts(folder: Path):
    code, _, err, jobs = finished(folder, "-m", "mode=plan", "seed=1,2,3,4", "trial_name=sweep")
    assert code == 3
    assert list(jobs) == ["sweep-0", "sweep-1", "sweep-2", "sweep-3"]
    assert len({lines[0].split()[0] for lines in jobs.values()}) == 4
    assert {lines[0].split()[1] for lines in jobs.values()} == {str(folder)}, "Hydra changes no folder"
    assert "job 1 (sweep-1): ended with exit code 1" in err and "job 3 (sweep-3): done" in err


def test_no_files_of_hydras_are_left(folder: Path):
    code, _, _, jobs = finished(folder, "-m", "mode=plan", "seed=1,4", "output_dir=runs")
    assert code == 0 and len(jobs) == 2
    left = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert {path for path in left if "__pycache__" not in path} == {"fake_job.py", *(f"jobs/{name}" for name in jobs)}
    assert not any(folder.rglob(".hydra"))


def test_without_a_name_jobs_and_sweeps_never_share_a_folder():
    first, second = sweep(["mode=plan", "seed=1,2"]), sweep(["mode=plan", "seed=1,2"])
    assert len({job.folder for job in [*first, *second]}) == 4


def test_words_reach_the_job_as_a_single_run_takes_them(folder: Path):
    words = [
        "mode=plan", "seed=1", "trial_name=t", "domain=theirs,telecom",
        "allocation_mode=vllm:d1|archon:d1,vllm:d2+archon:d2",
        "econfig.user_llm_args.temperature=0.5", "algorithm.eps_clip=0.1",
    ]  # fmt: skip
    *_, jobs = finished(folder, "--multirun", *words)
    assert len(jobs) == 4
    assert {"domain=own", "econfig.domain=theirs"} <= set(jobs["t-0"])
    assert {"allocation_mode='vllm:d2+archon:d2'", "domain=telecom"} <= set(jobs["t-3"])
    assert all("++econfig.user_llm_args.temperature=0.5" in lines for lines in jobs.values())


def test_a_real_model_gets_its_group_in_every_job():
    jobs = sweep(["mode=plan", "actor.path=a/b,c/d"])
    assert [job.config.actor.path for job in jobs] == ["a/b", "c/d"]
    assert all(job.config.actor.activation_checkpointing == "full" and "actor=hf" in job.words for job in jobs)


def test_secrets_reach_the_jobs_and_no_screen(folder: Path):
    code, out, err, jobs = finished(
        folder, "-m", "mode=plan", "seed=1,4", "econfig.user_llm_api_key=sk-a,b", "trial_name=t"
    )
    assert code == 0 and "sk-a" not in out + err
    assert all("in the variable: econfig.user_llm_api_key='sk-a,b'" in lines for lines in jobs.values())
    assert not any(line.startswith("econfig.user_llm_api_key") for lines in jobs.values() for line in lines)


def test_hydras_own_words_and_sweeps_of_files(folder: Path):
    (folder / "more" / "experiment").mkdir(parents=True)
    (folder / "more" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      gconfig.n_samples: 4,8\n"
    )
    words = ["-m", "mode=plan", "seed=1", "trial_name=t", "experiment=mine", "--config-dir=more"]
    words += ["hydra.sweep.dir=elsewhere"]
    code, _, err, jobs = finished(folder, *words)
    assert code == 0, err
    assert "gconfig.n_samples=4" in jobs["t-0"] and "gconfig.n_samples=8" in jobs["t-1"]
    assert any(line.startswith("hydra.searchpath=") for line in jobs["t-0"])
    assert (folder / "elsewhere").is_dir()


def test_another_launcher_starts_the_jobs(folder: Path):
    """A launcher is a plugin, in the namespace where Hydra looks for them."""
    package = folder / "hydra_plugins" / "backwards"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(
        "from hydra._internal.core_plugins.basic_launcher import BasicLauncher\n"
        "from hydra.core.config_store import ConfigStore\n"
        "class Backwards(BasicLauncher):\n"
        "    def launch(self, job_overrides, initial_job_idx):\n"
        "        print('launched by the plugin', len(job_overrides), flush=True)\n"
        "        return super().launch(job_overrides, initial_job_idx)\n"
        "ConfigStore.instance().store(group='hydra/launcher', name='backwards',\n"
        "    node={'_target_': 'hydra_plugins.backwards.Backwards'})\n"
    )
    code, out, err, jobs = finished(folder, "-m", "mode=plan", "seed=1,4", "hydra/launcher=backwards")
    assert code == 0, err
    assert "launched by the plugin 2" in out and len(jobs) == 2


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["sed=1,2"], "no such key. Did you mean seed?"),
        (["seed=1,-2", "gconfig.n_samples=1,4"], "gconfig.n_samples=1"),
        (["seed=1,-2", "gconfig.n_samples=1,4"], "seed=-2"),
        (["domain=telecom,airline", "mode=train"], "needs a user simulator"),
        (["seed=1,2", "trial_name=a,a"], "would share a run folder"),
        (["gconfig.temperature=interval(0,1)"], "is no list of values"),
        (["seed=1,2", "hydra/sweeper=optuna"], "only all combinations can be run"),
        (["seed=1,2", "hydra/launcher=joblib"], "hydra/launcher"),
        (["seed=1,2", "not an override"], "not an override"),
    ],
)
def test_nothing_starts_when_a_job_is_wrong(words, named: str, capfd, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a job was started"))
    mode = [] if any(word.startswith("mode=") for word in words) else ["mode=plan"]
    assert train.main(["--multirun", *mode, *words]) == 2
    assert named in capfd.readouterr().err


def test_a_sweep_over_runs_keeps_their_names():
    with pytest.raises(ConfigError, match="share a run folder"):
        sweep(["mode=plan", "trial_name=a,b", "seed=1,2"])
    jobs = sweep(["mode=plan", "trial_name=a,b"])
    assert [job.config.trial_name for job in jobs] == ["a", "b"]


def test_the_proxy_is_not_repeated_and_torchrun_not_multiplied(capsys, monkeypatch: pytest.MonkeyPatch):
    assert serve.main(["--multirun", "actor.path=a,b"]) == 2
    assert "serves until it is stopped" in capsys.readouterr().err
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert sft.main(["--multirun", "seed=1,2"]) == 2
    assert "without torchrun" in capsys.readouterr().err


def running(folder: Path) -> Path:
    """The file of the first job, once that job runs."""
    first = folder / "jobs" / "t-0"
    deadline = time.monotonic() + 120
    while not first.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.3)
    return first


def test_an_interrupt_ends_the_job_in_order_and_starts_no_other(folder: Path):
    with start(folder, "-m", "mode=plan", "seed=1,4", "trial_name=t", JOB_SECONDS="60") as process:
        first = running(folder)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
    assert first.read_text() == "interrupted"
    assert not (folder / "jobs" / "t-1").exists()


def test_a_job_ends_with_a_sweep_that_is_killed(folder: Path):
    with start(folder, "-m", "mode=plan", "seed=1", "trial_name=t", JOB_SECONDS="60") as process:
        first = running(folder)
        pid = int(first.read_text().split()[0])
        process.kill()
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the job lives on")


def test_a_sweep_without_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="makes no job"):
        sweep(["seed=glob(*)"])


RUN = """
import json, sys
from pathlib import Path
words = {key: value.strip("'") for key, value in (word.split("=", 1) for word in sys.argv[1:])}
folder = Path("outputs", words["experiment_name"], words["trial_name"])
(folder / "metrics").mkdir(parents=True)
(folder / "metrics" / "metrics.csv").write_text(f"step,reward/mean\\n0,0.{words['seed']}\\n1,0.5\\n")
(folder / "config.yaml").write_text(f"seed: {words['seed']}\\n")
trials = {str(n): [int(n < int(words["seed"])), 1] for n in range(4)}
one = {"domain": "mock", "stamp": {"tau2": "1"}, "summary": {"excluded": {}}, "trials": trials}
(folder / "report.json").write_text(json.dumps({"evaluations": {"after": one}}))
"""


def test_a_sweep_makes_one_folder_with_one_report_over_its_runs(folder: Path):
    (folder / "fake_job.py").write_text(RUN)
    code, out, err, _ = finished(folder, "-m", "mode=plan", "seed=1,2,3", "trial_name=sweep", COLUMNS="120")
    assert code == 0, err
    parent = folder / "outputs" / "tau2-grpo" / "sweep"
    assert sorted(path.name for path in parent.iterdir()) == [
        "pooled.json", "report.html", "sweep-0", "sweep-1", "sweep-2",
    ]  # fmt: skip
    text = " ".join(out.split())
    assert "mean over 3 runs, 95% interval over runs" in text and "pass^1 │ 0.500 [" in text
    assert "pass^1 of sweep-2 (seed 3) │ 0.750" in text.rpartition("report.html")[2], "the table is what comes last"


def test_the_parent_of_a_sweep_is_where_its_runs_meet():
    def parent(*words: str) -> str:
        return str(parent_of(sweep(["mode=plan", *words])).relative_to(Path.cwd()))

    assert parent("seed=1,2", "trial_name=s") == "outputs/tau2-grpo/s"
    assert parent("trial_name=a,b") == "outputs/tau2-grpo"
    assert parent("experiment_name=a,b", "trial_name=s") == "outputs"
