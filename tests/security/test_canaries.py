"""No secret is in anything that a run leaves or shows.

That is its folder, logs, W&B's offline folder, checkpoints, reports of a stuck phase, command lines of its processes,
tracebacks of a failing start, and the output of --cfg, --help and a plan.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tau2_lightning import train
from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.redaction import redacted, remember
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import is_secret
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.launch.node import NodeTask, command
from tau2_lightning.launch.run_folder import RunFolder
from tau2_lightning.launch.secret_words import split_words, words_of_parent
from tau2_lightning.launch.stopping import StopSignals
from tau2_lightning.run import exit as run_exit
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.deadlines import Deadline
from tau2_lightning.run.stuck import StuckWatch
from tau2_lightning.telemetry.phases import PhaseClock
from tests.cases.runs import Runs
from tests.jobs import small_policy

from .canaries import (
    NAMED,
    NO_SECRETS,
    canary,
    found_in,
    planted_environment,
    planted_words,
    shown_below,
)

WORDS = planted_words()
SECRETS = {key: canary(key) for key in WORDS} | planted_environment()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in planted_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_policy(tmp_path_factory)


def test_every_key_that_is_named_like_a_secret_is_one() -> None:
    """A new key of the schema must be in ``SECRETS``, or be named here as none."""
    named = {key.name for key in schema_keys(RunConfig) if key.section is None and NAMED.search(key.name)}
    assert not {key for key in named if not is_secret(key) and not NO_SECRETS.search(key)}
    planted = {key for key in SECRETS if "." in key}
    assert {key for key in named if is_secret(key) and not key.startswith("domains.")} <= planted


def test_nothing_that_a_run_leaves_shows_a_secret(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: None, capfd: pytest.CaptureFixture[str]
) -> None:
    runs = Runs(policy, tmp_path, monkeypatch)
    words = [*WORDS.values(), "trainer.limit_val_batches=1", "trainer.max_epochs=1", "logger=wandb",
             "+logger.tb._target_=tau2_lightning.run.loggers.tensorboard", "econfig.user_llm=user",
             "econfig.user_llm_base_url=http://127.0.0.1:1/v1"]  # fmt: skip
    runs(*words)
    left = shown_below(tmp_path, SECRETS)
    assert left == {}
    assert any("wandb" in path.parts for path in tmp_path.rglob("*.wandb")), "W&B kept an offline run"
    assert runs.kept() and (runs.folder / "rollouts").is_dir() and (runs.folder / "config.yaml").is_file()
    shown = capfd.readouterr()
    assert found_in((shown.out + shown.err).encode(), SECRETS) == []
    # Negative control: what is no secret is found in the same way.
    assert shown_below(tmp_path, {"control": "127.0.0.1:1/v1"}).keys() >= {"e/t/config.yaml"}


def test_no_output_of_a_command_shows_a_secret(environment: None, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*WORDS.values(), "domain=mock", "logger=wandb"]
    interpolated = ["+logger.wandb.notes=${oc.env:OPENAI_API_KEY}", "trial_name=${oc.env:MY_OWN_PASSWORD}"]
    commands = [
        [*words, "--cfg", "job"],
        [*words, *interpolated, "--cfg", "all", "--resolve"],
        [*words, *interpolated, "--cfg", "job", "--resolve", "--package", "logger"],
        [*words, "--info", "defaults"],
        [*words, "--help", "rollout.engine_api_key", "econfig"],
        [*words, "mode=plan"],
        [*words, "gconfig.n_smaples=3", "gconfig.n_samples=[oops"],
        [*words, "gconfig.n_samples=${oc.env:OPENAI_API_KEY}", "mode=plan"],
        [*words, "actor.path=${oc.env:OPENAI_API_KEY}"],
        [*words, "rollout.engine_urls=['http://me:" + canary("OPENAI_API_KEY") + "@127.0.0.1:8000']"],
        [*words, "rollout.engine_args=['--api-key','" + canary("HF_TOKEN") + "']"],
        [*words, f"rollout.engine_ap_key={canary('rollout.engine_api_key')}"],
        [*words, f"++apiKey={canary('rollout.engine_api_key')}"],
    ]
    for given in commands:
        assert train.main(given) in (0, 2)
        shown = capfd.readouterr()
        assert shown.out + shown.err
        assert found_in((shown.out + shown.err).encode(), SECRETS) == [], given[-2:]


URL = "https://me:{}@127.0.0.1:8000/v1"


@pytest.mark.parametrize(
    ("word", "key"),
    [
        (f"rollout.engine_urls=['{URL}']", "rollout.engine_urls"),
        (f"econfig.user_llm_base_url='{URL}'", "econfig.user_llm_base_url"),
        ("econfig.judge_llm_base_url='http://127.0.0.1/v1?api_key={}'", "econfig.judge_llm_base_url"),
        ("rollout.engine_args=['--api-key={}']", "rollout.engine_args"),
        ("rollout.engine_args=['--hf-token','{}']", "rollout.engine_args"),
        ("econfig.user_engine.engine_args=['--hf-token={}']", "econfig.user_engine.engine_args"),
    ],
)
@pytest.mark.parametrize("mode", ["plan", "train"])
def test_a_secret_in_a_place_that_is_shown_is_refused(
    word: str, key: str, mode: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """URLs are written to logs and files; arguments of an engine are seen in the list of processes."""
    monkeypatch.setattr(train, "run", lambda _: pytest.fail("it started"))
    assert train.main(["domain=mock", f"mode={mode}", word.format(canary("x"))]) == 2
    both = capsys.readouterr()
    assert key in both.out + both.err and "***" in both.out + both.err and canary("x") not in both.out + both.err


def test_what_is_no_secret_is_accepted() -> None:
    """Negative control."""
    load_config(["domain=mock", "rollout.engine_urls=['http://127.0.0.1:8000']", "rollout.engine_args=['--x=3']"])


FAILS = """
import logging, sys, threading
from tau2_lightning.config.redaction import hide_in_tracebacks, remember
hide_in_tracebacks()
remember([sys.argv[1]])
def fail():
    raise ValueError(f"Illegal header value b'Bearer {sys.argv[1]}'")
thread = threading.Thread(target=fail)
thread.start()
thread.join()
try:
    fail()
except ValueError:
    logging.getLogger("asyncio").exception("Task exception was never retrieved")
fail()
"""


def test_tracebacks_and_log_lines_show_no_secret() -> None:
    done = subprocess.run([sys.executable, "-c", FAILS, canary("x")], capture_output=True, text=True)
    assert done.returncode == 1 and canary("x") not in done.stderr
    assert done.stderr.count("Illegal header value b'Bearer ***'") == 3 and "Traceback" in done.stderr


def test_the_hooks_belong_to_the_command_and_hide_what_the_configuration_holds(tmp_path: Path) -> None:
    """A start that fails with an error which is no error of ours, and quotes a key."""
    program = (
        "import sys\nfrom tau2_lightning import train\n"
        "def run(config):\n"
        "    raise LookupError(f'key {config.rollout.engine_api_key!r} and {config.econfig.user_llm_api_key}')\n"
        "train.run = run\ntrain.main()"
    )
    words = ["domain=mock", "logger=csv", f"output_dir={tmp_path}", f"rollout.engine_api_key={canary('x')}",
             "econfig.user_llm_api_key=${oc.env:MINE}"]  # fmt: skip
    environment = os.environ | {"MINE": canary("y")}
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment)
    shown = done.stdout + done.stderr
    assert done.returncode == 1 and "LookupError: key '***' and ***" in shown, shown
    assert found_in(shown.encode(), {"x": canary("x"), "y": canary("y")}) == []
    assert "warning: rollout.engine_api_key is on the command line" in shown
    assert "user_llm_api_key is on the command line" not in shown, "it is in a variable"


def test_errors_of_ours_quote_no_secret(capsys: pytest.CaptureFixture[str]) -> None:
    remember([canary("x"), 'quote"and\\slash'])
    text = f"user: http_401: Incorrect API key provided: {canary('x')}"

    def fail() -> int:
        raise InfrastructureFault("user", "http_401", text)

    assert run_exit.exit_code(fail) == 1
    assert canary("x") not in (shown := capsys.readouterr().err) and "Incorrect API key provided: ***" in shown
    assert redacted(json.dumps({"key": 'quote"and\\slash'})) == '{"key": "***"}'


def test_a_secret_that_cannot_be_read_is_not_quoted_beside_another_wrong_word(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["mode=plan", "callbacks=../train", "econfig.user_llm_args.extra_headers.Authorization={canary-of-a-word"]
    assert train.main(words) == 2
    err = capsys.readouterr().err
    assert "canary" not in err and "Authorization=***" in err


def test_the_report_of_a_stuck_phase_shows_no_secret(tmp_path: Path, environment: None) -> None:
    """Stacks name functions and lines, never values."""
    folder = RunFolder(tmp_path)
    folder.logs.mkdir()
    (folder.logs / "engine.log").write_text("started\n")
    clock, key = PhaseClock(), canary("HF_TOKEN")
    deadline = Deadline(600.0, "trainer.train_timeout", "the run ends")
    with clock.phase("train"), StuckWatch(clock, folder, StopSignals(60.0), lambda: {"train": deadline}) as watch:
        report = watch.report("train", 1.0, deadline)
        assert report is not None and key
    assert list(report.iterdir()) and shown_below(tmp_path, SECRETS) == {}


def test_secret_words_reach_children_in_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["seed=3", f"rollout.engine_api_key={canary('x')}", f"econfig.user_llm_args={{api_key: {canary('y')}}}"]
    plain, variables = split_words(words)
    assert plain == ["seed=3"]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert words_of_parent() == words[1:]
    task = NodeTask("", tuple(words), ".", ".", "key", 1.0)
    assert command(task)[-1] == "seed=3" and found_in(repr(command(task)).encode(), {"x": canary("x")}) == []
    assert split_words(["seed=3"]) == (["seed=3"], {}), "negative control"


def test_no_command_line_of_a_sweep_shows_a_secret(tmp_path: Path) -> None:
    """The jobs of a multirun and all processes below them: only the user's own command line has what it was given."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "if os.environ.get('PLANTED') and '-m' in sys.orig_argv:\n"
        "    import tau2_lightning.run.opening as opening\n"
        "    def open_run(config):\n"
        "        open(os.environ['PLANTED'], 'w').write(config.rollout.engine_api_key)\n"
        "        time.sleep(60)\n"
        "    opening.open_run = open_run\n"
    )
    arrived = tmp_path / "arrived"
    program = "from tau2_lightning import train; import sys; sys.exit(train.main(sys.argv[1:]))"
    words = ["--multirun", "seed=1", "domain=mock", "logger=csv", f"output_dir={tmp_path}",
             f"rollout.engine_api_key={canary('x')}"]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    parent = subprocess.Popen(
        [sys.executable, "-c", program, *words], env=environment | {"PLANTED": str(arrived)}, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        ends = time.monotonic() + 120
        while not (arrived.is_file() and arrived.read_text()):
            assert parent.poll() is None and time.monotonic() < ends
            time.sleep(0.1)
        assert arrived.read_text() == canary("x")
        below = psutil.Process(parent.pid).children(recursive=True)
        assert below and found_in(repr([one.cmdline() for one in below]).encode(), {"x": canary("x")}) == []
        assert found_in(repr(psutil.Process(parent.pid).cmdline()).encode(), {"x": canary("x")}) == ["x"], "control"
    finally:
        for process in [*psutil.Process(parent.pid).children(recursive=True), psutil.Process(parent.pid)]:
            process.kill()
        parent.wait(10)
