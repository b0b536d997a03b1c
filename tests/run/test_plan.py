"""``mode=plan`` shows the layout and what would keep a run from starting, and starts nothing."""

import re

import pytest

from tau2_lightning import serve, sft, train
from tau2_lightning.config.allocation import Allocation
from tau2_lightning.launch.placement import place
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.plan import device_rows


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


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("vllm:d99999999999999999999+archon:d1", "d is more than 65536. At most 65536; is a digit too many?"),
        ("vllm:d1+archon:d999p999t999", "devices. At most 16384; is a digit too many?"),
    ],
)
def test_a_digit_too_many_is_refused_at_once_by_plan_and_start(text, problem, capsys):
    for words in (["mode=plan"], []):
        assert train.main([*words, "domain=mock", f"allocation_mode={text}"]) == 2
        shown = capsys.readouterr().err
        assert problem in shown and f"    {text}" in shown


def test_places_cover_the_mesh_once():
    rows = device_rows(place(Allocation.parse("vllm:d2t2+archon:d2p2t2"), 3, 4))
    assert [row[0] for row in rows] == [f"node {n} gpu {g}" for n in range(3) for g in range(4)]
    trainer = [row[3] for row in rows if row[1].startswith("archon")]
    assert len(set(trainer)) == 8
    assert trainer[0] == "p0 d0 c0 t0"
    assert trainer[1] == "p0 d0 c0 t1"
    assert trainer[-1] == "p1 d1 c0 t1"


def test_the_plan_shows_each_domain_with_its_share(capsys):
    assert train.main(["mode=plan", "experiment=mixture"]) == 0
    told = capsys.readouterr().out
    assert "tau2 telecom, 25% of the tasks, solo (no user), train on split `full_minus_test`" in told
    assert "tau2 retail, 50% of the tasks, user: scripted, train on split `train`" in told


def test_a_refused_plan_shows_what_the_job_would_resolve_to(capsys):
    words = ["mode=plan", "domain=[telecom,retail,nowhere]", "valid_dataset.limit=20", "valid_dataset.temperature=0"]
    assert train.main(words) == 2
    told = capsys.readouterr().out
    shown = "validate on 20 of 40 tasks of split `test`, 4 trials each, temperature 0"
    assert f"tau2 telecom, 33% of the tasks, solo (no user), train on split `full_minus_test`, {shown}" in told
    assert f"tau2 retail, 33% of the tasks, user: not configured, train on split `train`, {shown}" in told
    unknown = "tau2 nowhere, 33% of the tasks, train on split `train`, validate on at most 20 tasks of split `test`"
    assert unknown in told  # neither its users nor its tasks are known


def test_a_refused_plan_names_the_user_that_a_url_chooses(capsys):
    words = ["mode=plan", "domain=retail", "econfig.user_llm_base_url=http://x/v1", "gconfig.max_new_tokens=9999"]
    assert train.main([*words, "valid_dataset.limit=400", "valid_dataset.top_p=0.9"]) == 2
    told = capsys.readouterr().out
    assert "tau2 retail, user: llm, train" in told and "validate on all 40 tasks" in told and "top_p 0.9" in told


def test_a_validation_is_planned_with_its_episodes(capsys):
    assert train.main(["mode=plan", "mode=validate", "domain=telecom", "valid_dataset.limit=10"]) == 0
    told = capsys.readouterr().out
    assert "vllm:d1+archon:d1p1t1, mode=validate" in told
    assert "tau2 telecom, solo (no user), validate on 10 of 40 tasks of split `test`, 4 trials each" in told
    assert "validation: 10 tasks of telecom x 4 trials = 40 episodes, of the starting policy" in told
    assert "training: " not in told and "train on" not in told and ", validation " in told


@pytest.mark.parametrize("words", [["mode=validate", "plan=true"], ["experiment=leaderboard", "mode=plan"]])
def test_a_plan_is_of_the_mode_that_the_other_words_choose(words):
    config = load_config([*words, "actor=tiny"], check=False)
    assert config.plan and config.mode == "validate"
    assert load_config(["mode=plan"], check=False).mode == "train"


def test_the_plan_of_a_validation_of_several_domains_adds_them_up(capsys):
    words = ["experiment=mixture", "mode=validate", "valid_dataset.limit=5", "valid_dataset.num_trials=2"]
    assert train.main([*words, "mode=plan"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"validation: 5 tasks of \w+ x 2 trials \+ 5 tasks of \w+ x 2 .* = \d0 episodes", told), told


def test_the_plan_of_a_validation_has_the_time_that_is_given(capsys):
    words = ["mode=plan", "mode=validate", "domain=telecom", "valid_dataset.limit=10", "valid_dataset.timeout=31"]
    assert train.main(words) == 0
    assert ", validation 31 s" in capsys.readouterr().out


def test_the_plan_of_a_validation_refuses_what_its_start_would(capsys, tmp_path):
    words = ["mode=validate", "ckpt_path=last", "trial_name=none", f"output_dir={tmp_path}"]
    assert train.main([*words, "mode=plan"]) == 2
    told = capsys.readouterr().out
    assert f"ckpt_path='last': {tmp_path}/tau2-grpo/none/checkpoints holds no checkpoint" in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", [sft, serve])
def test_only_train_plans(program, capsys):
    assert program.main(["mode=plan", "domain=telecom"]) == 2
    assert "plan=True: is for tau2_lightning.train" in capsys.readouterr().err
