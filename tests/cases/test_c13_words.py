"""C13: words that are wrong in unusual ways: one error and exit code 2, the same in a plan and at a start, in seconds,
without a secret."""

from __future__ import annotations

import time
from pathlib import Path
from typing import get_args

import pytest

from tau2_lightning import train
from tau2_lightning.config.actor import ActorConfig
from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.paths import LONGEST_NAME, LONGEST_PATH
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tau2_lightning.strategy.pipeline import SCHEDULES

SECRET = "sk-never-to-be-seen"
SECONDS = 5.0
LONG = "x" * (LONGEST_NAME + 1)
# The word, and what the error must name.
WORDS = [
    ("trainer=null", "trainer"),
    ("+rollout=nan", "rollout"),
    ("~actor=[]", "actor"),
    ("~actor", "actor"),
    ("~trainer", "trainer"),
    ("actor=null", "actor"),
    ("rollout={}", "rollout"),
    ("rollout=[1,2]", "rollout"),
    ("=1", "command line"),
    ("++", "command line"),
    ("~=", ""),
    ("rollout.collect_timeout=inf", "rollout.collect_timeout"),
    ("rollout.collect_timeout=nan", "rollout.collect_timeout"),
    ("rollout.collect_timeout=-inf", "rollout.collect_timeout"),
    ("trainer.grace_seconds=nan", "trainer.grace_seconds"),
    ("actor.optimizer.lr=nan", "actor.optimizer.lr"),
    ("actor.optimizer.lr=1e999", "actor.optimizer.lr"),
    ("actor.optimizer.betas=[1.5,2.0]", "actor.optimizer.betas"),
    ("actor.optimizer.betas=[0.9,1.0]", "actor.optimizer.betas"),
    ("actor.optimizer.betas=[nan,0.9]", "actor.optimizer.betas"),
    ("algorithm.eps_clip=nan", "algorithm.eps_clip"),
    ("algorithm.kl_ctl=inf", "algorithm.kl_ctl"),
    ("algorithm.adv_norm.eps=nan", "algorithm.adv_norm.eps"),
    ("warm_start.steps=-1", "warm_start.steps"),
    ("actor.schedule=nope", "actor.schedule"),
    ("ckpt_path={folder}", "is no checkpoint of this project"),
    ("ckpt_path={folder}/none", "does not exist"),
    ("rollout.engine_urls=[ftp://x]", "rollout.engine_urls"),
    ("econfig.user_llm_base_url=ftp:/x", "econfig.user_llm_base_url"),
    ("allocation_mode=vllm:d30000000+archon:d1", "more than 65536"),
    ("allocation_mode=vllm:d1+archon:d30000t30000", "900000000 devices"),
    ("allocation_mode=vllm:d1+archon:d" + "9" * 6000, "more than 65536"),
    ("cluster.n_nodes=30000000", "cluster.n_nodes"),
    (f"actor.path=/{LONG}", "actor.path"),
    (f"actor.gguf=/{LONG}.gguf", "actor.gguf"),
    (f"actor.chat_template=/{LONG}", "actor.chat_template"),
    (f"ckpt_path=/{LONG}", "ckpt_path"),
    (f"output_dir=/{LONG}", "output_dir"),
    (f"cache_dir=/{LONG}", "cache_dir"),
    (f"trial_name={LONG}", "trial_name"),
    (f"experiment_name={LONG}", "experiment_name"),
    (f"warm_start.data={LONG}", "warm_start.data"),
    (f"econfig.user_engine.path={LONG}", "econfig.user_engine.path"),
    ("output_dir=" + "ab/" * LONGEST_PATH, "output_dir"),
    ("econfig.user_llm_api_key={" + SECRET, "econfig.user_llm_api_key"),
    ("econfig.user_llm_api_key=[" + SECRET, "econfig.user_llm_api_key"),
    ("rollout.engine_api_key=" + SECRET + "'", "rollout.engine_api_key"),
    ("econfig.user_llm_args={api_key: " + SECRET, "econfig.user_llm_args"),
    ("+rollout.workflow.api_key={" + SECRET, "rollout.workflow.api_key"),
]


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(config: object) -> int:
        raise AssertionError("a run was started")

    monkeypatch.setattr(train, "run", refuse)


@pytest.fixture(scope="module", autouse=True)
def imported() -> None:
    """What the first check imports takes longer than the check."""
    load_config(["domain=mock"])


@pytest.mark.parametrize("mode", ["train", "plan"])
@pytest.mark.parametrize(("word", "named"), WORDS, ids=[word[:40] for word, _ in WORDS])
def test_c13_one_error_and_exit_code_2(
    word: str, named: str, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.process_time()
    word = word.replace("{folder}", str(tmp_path)) if word.startswith("ckpt_path={folder}") else word
    assert train.main(["domain=mock", f"mode={mode}", word]) == 2
    assert time.process_time() - began < SECONDS
    both = capsys.readouterr()
    shown = both.out + both.err
    assert named in shown and "Traceback" not in shown and SECRET not in shown
    said = ("problem in the configuration", "problems in the configuration", "would not start here")  # the last: a plan
    assert sum(map(shown.count, said)) == 1


def test_c13_values_at_the_bounds_are_taken() -> None:
    """Negative control."""
    words = [f"experiment_name={'x' * 200}", "actor.optimizer.betas=[0.0,0.999]", "algorithm.eps_clip=0.3"]
    load_config([*words, "domain=mock", "rollout.collect_timeout=1e9", "actor.schedule=GPipe"])


def test_c13_no_number_of_the_schema_may_be_infinite() -> None:
    """The kind: every key that takes a float refuses inf and nan, without a bound of its own."""
    floats = [key.name for key in schema_keys(RunConfig) if key.section is None and "float" in key.kind.split(" or ")]
    assert len(floats) > 30
    for value in ("inf", "nan"):
        with pytest.raises(ConfigError) as error:
            load_config(["domain=mock", *(f"{name}={value}" for name in floats)], check=False)
        assert {violation.key for violation in error.value.violations} >= set(floats)


def test_c13_the_schedules_of_the_schema_are_those_that_exist() -> None:
    assert get_args(ActorConfig.model_fields["schedule"].annotation) == SCHEDULES
