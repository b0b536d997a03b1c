"""The options that Hydra users know: --help, --cfg, --info and --config-dir, for each of the three commands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tau2_lightning import serve, sft, train

COMMANDS = ["tau2_lightning.train", "tau2_lightning.sft", "tau2_lightning.serve", "tau2_lightning.rollout.proxy"]
HEAVY = ("torch", "vllm", "tau2", "transformers", "lightning", "huggingface_hub", "litellm")
RUN_AND_LIST = """
import runpy, sys
sys.argv = ["command", *sys.argv[1:]]
code = 0
try:
    runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
except SystemExit as end:
    code = end.code
print("imported:", *[name for name in HEAVY if name in sys.modules])
assert code in (0, None), code
"""


def imported(module: str, *words: str) -> list[str]:
    """The lines that the command printed; the last one lists the heavy modules that it imported."""
    # `leave` ends the process immediately: the list must be printed before.
    program = f"import os; os._exit = sys.exit\nMODULE, HEAVY = {module!r}, {HEAVY!r}\n{RUN_AND_LIST}"
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{program}", *words], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("module", COMMANDS)
@pytest.mark.parametrize("words", [("--help",), ("--help", "rollout.retries", "actor.path=no/such-model-anywhere")])
def test_help_imports_nothing_heavy_and_asks_no_hub(module: str, words: tuple[str, ...]):
    *shown, last = imported(module, *words)
    assert last == "imported:"
    assert ("usage: python -m" in "\n".join(shown)) == (words == ("--help",))


@pytest.mark.parametrize(("program", "about"), [(train, "mode=plan"), (sft, "min_reward=1"), (serve, "engine_urls")])
def test_help_of_a_command(program, about: str, capsys: pytest.CaptureFixture[str]):
    assert program.main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert about in shown and "domain       airline" in shown
    assert ("--multirun" in shown) == (program is not serve), "serve takes no sweep"


def test_help_of_a_key_names_type_bounds_default_and_meaning(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--help", "rollout.retries"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  rollout.retries  (int, >= 0, default 2)",
        "      retries of an episode after an infrastructure fault; after the last one it is excluded",
    ]


def test_help_of_a_section_lists_its_keys(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--help", "actor", "actor.path=x"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("actor: The policy that learns.\n  actor.path  (str or null, default x)")
    assert "actor.optimizer.lr  (float, > 0, default 1e-06)" in shown


def test_help_of_an_algorithms_key_is_the_files_comment(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--help", "algorithm.kl_estimator", "algorithm.c_clip"]) == 0
    assert "k1 | k2 | k3" in (shown := capsys.readouterr().out) and "above 1: dual clip" in shown


def test_help_of_a_group_lists_its_choices(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--help", "domain", "experiment"]) == 0
    shown = capsys.readouterr().out
    assert "airline, banking_knowledge, mock" in shown and "domain=[telecom,retail]" in shown
    assert "experiment=CHOICE" in shown and "learn-retail" in shown


def test_help_of_a_key_of_one_domain(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--help", "domains.retail.weight", "domains.retail.econfig.max_errors"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "  domains.NAME.weight  (float, > 0, default 1.0)",
        "      share of the training tasks, relative to the others",
        "  econfig.max_errors  (int, >= 1, default 10)",
        "      tool errors after which an episode ends",
    ]
    assert train.main(["--help", "domains.retail.actor.path"]) == 2
    assert "domains.retail.actor.path: no such key" in capsys.readouterr().err


def test_help_of_unknown_keys_names_the_nearest(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--help", "rollout.retires", "gconfg"]) == 2
    shown = capsys.readouterr().err
    assert "Did you mean rollout.retries?" in shown and "Did you mean gconfig?" in shown
    assert "rollout.retires: no such key" in shown, "no value was given, so none may be shown"


def test_help_explains_the_known_keys_before_it_refuses_the_others(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--help", "seed", "trainer.precision", "lr"]) == 2
    shown = capsys.readouterr()
    assert shown.out.startswith("  seed  (int, >= 0, default 1)")
    assert "trainer.precision: cannot be set: the strategy computes" in shown.err
    assert "Did you mean actor.optimizer.lr?" in shown.err


@pytest.mark.parametrize("program", [train, sft, serve])
def test_cfg_prints_the_composition_and_runs_nothing(program, capsys: pytest.CaptureFixture[str]):
    assert program.main(["domain=retail", "--cfg", "job", "seed=7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert (shown["econfig"]["domain"], shown["seed"]) == ("retail", 7)
    assert shown["algorithm"]["turn_discount"] == "${econfig.turn_discount}"
    assert program.main(["--cfg", "job", "--resolve", "--package", "algorithm"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["turn_discount"] == 1.0


def test_cfg_hydra_changes_no_folder_and_keeps_no_files(capsys: pytest.CaptureFixture[str]):
    assert train.main(["--cfg", "hydra"]) == 0
    hydra = yaml.safe_load(capsys.readouterr().out)["hydra"]
    assert hydra["run"]["dir"] == "." and hydra["output_subdir"] is None and hydra["job"]["chdir"] is False


@pytest.mark.parametrize("kind", ["job", "all", "hydra"])
def test_cfg_hides_secrets_of_words(kind: str, capsys: pytest.CaptureFixture[str]):
    assert train.main(["econfig.user_llm_api_key=sk-mine", "rollout.engine_api_key=sk-mine", "--cfg", kind]) == 0
    shown = capsys.readouterr().out
    assert "sk-mine" not in shown and shown.count("***") >= 2


def test_cfg_hides_secrets_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe(tmp_path, "econfig:\n  user_llm_api_key: sk-mine\n")
    assert train.main(["--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job"]) == 0
    shown = capsys.readouterr().out
    assert "sk-mine" not in shown and "***" in shown


def test_a_folder_of_ones_own_experiments(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    recipe(tmp_path, "seed: 77\n")
    assert train.main(["experiment=mine", "--cfg", "job"]) == 2
    assert "learn, learn-retail" in capsys.readouterr().err
    assert train.main([f"--config-dir={tmp_path}", "experiment=mine", "--cfg", "job", "-p", "seed"]) == 0
    assert capsys.readouterr().out == "77\n"
    assert train.main(["--config-dir=no/such/folder", "--cfg", "job"]) == 2


def recipe(folder: Path, text: str) -> None:
    (folder / "experiment").mkdir()
    (folder / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["--cfg", "jobs"], "invalid choice: 'jobs'"),
        (["--cfg", "job", "--package", "actr"], "no such section"),
        (["hydra.verbose=true"], "hydra.verbose='true': has no effect on a single run"),
        (["hydra/launcher=joblib", "seed=2"], "has no effect on a single run"),
    ],
)
def test_options_that_cannot_be_used(words: list[str], named: str, capsys: pytest.CaptureFixture[str]):
    assert train.main(words) == 2
    assert named in capsys.readouterr().err


def test_info_says_where_groups_come_from():
    done = subprocess.run(
        [sys.executable, "-m", "tau2_lightning.train", "--info", "searchpath"], capture_output=True, text=True
    )
    assert done.returncode == 0 and str(Path(__file__).parents[2] / "conf") in done.stdout


@pytest.mark.parametrize("words", [["domain=mock\udcff"], ["--cfg", "job", "seed=\udc80"], ["mode=plan", "~\udcff"]])
def test_bytes_that_are_no_utf8_are_refused_before_anything_reads_them(words, capsys):
    assert train.main(words) == 2
    assert "is not UTF-8" in capsys.readouterr().err


def test_an_unreadable_secret_is_not_shown(capsys):
    assert train.main(["econfig.user_llm_api_key=canary\udcff"]) == 2
    err = capsys.readouterr().err
    assert "is not UTF-8" in err and "canary" not in err
