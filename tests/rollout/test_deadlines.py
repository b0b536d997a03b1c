"""Time limits follow from the tokens that may be sampled; computed limits never exceed given ones around them."""

from __future__ import annotations

import pytest

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.rollout import deadlines
from tau2_lightning.rollout.deadlines import Limits, training_episodes
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.generation_rules import check_generation


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deadlines, "usable_cores", lambda: 2)


def config(*words: str) -> RunConfig:
    return load_config(["domain=mock", "trainer.accelerator=cpu", *words], check=False)


def test_a_completion_gets_the_time_of_its_tokens() -> None:
    words = ["gconfig.max_tokens=40000", "gconfig.max_new_tokens=1000", "econfig.max_steps=100"]
    short, long = (Limits.of(config(*words, *more)) for more in ([], ["gconfig.max_new_tokens=16000"]))
    assert short.request == 120 + 1000 / 2 and long.request == 120 + 16000 / 2
    assert Limits.of(config(*words, "rollout.tokens_per_second=20")).request == 120 + 1000 / 20
    # All turns together sample no more than the context holds: 40,000 tokens, and not 50 x 1,000.
    assert short.episode == 620 + 40_000 / 2 + 50 * 2.0


def test_requests_that_take_turns_get_as_much_more() -> None:
    crowded = Limits.of(config("rollout.max_concurrent_rollouts=100", "rollout.max_num_seqs=30"))
    assert crowded.request == 120 + 4 * 96 / 2


def test_concurrency_follows_the_engines_and_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["rollout.max_num_seqs=32"]
    assert Limits.of(config(*words)).concurrent == 32
    urls = "rollout.engine_urls=[http://a:1,http://b:1,http://c:1]"
    assert (Limits.of(config(*words, urls)).engines, Limits.of(config(*words, urls)).concurrent) == (3, 96)
    assert Limits.of(config("rollout.max_num_seqs=256", urls)).concurrent == 2 * 64
    monkeypatch.setattr(deadlines, "usable_cores", lambda: 16)
    assert Limits.of(config("rollout.max_num_seqs=256", urls)).concurrent == 768
    assert Limits.of(config("rollout.max_concurrent_rollouts=5", urls)).concurrent == 5


def test_a_batch_gets_the_time_of_its_episodes_with_their_retries() -> None:
    found = Limits.of(config("rollout.episode_timeout=1000", "rollout.retries=2"))
    # Three attempts of 1000 s, each with 10 s to end it, and pauses of 0.5 and 1 s between them.
    assert found.batch(128) == 3031.5 and found.batch(129) == 6063
    assert Limits.of(config("rollout.episode_timeout=10")).batch(1) == 1800
    assert Limits.of(config("rollout.collect_timeout=77")).batch(10_000) == 77
    whole = config("train_dataset.batch_size=4", "gconfig.n_samples=8", "rollout.max_refill_groups=2")
    assert training_episodes(whole) == 48


def test_limits_that_follow_are_never_longer_than_a_given_one() -> None:
    found = Limits.of(config("rollout.collect_timeout=50"))
    assert found.request == found.episode == 50
    assert Limits.of(config("rollout.episode_timeout=60")).request == 60


def test_a_user_that_is_a_model_takes_time() -> None:
    alone, asked = (
        Limits.of(config("econfig.solo_mode=false", f"econfig.user={kind}", "econfig.user_llm=m"))
        for kind in ("scripted", "llm")
    )
    assert asked.episode - alone.episode == 50 * 10.0


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (["rollout.request_timeout=700", "rollout.episode_timeout=600"], "rollout.request_timeout=700"),
        (["rollout.episode_timeout=700", "rollout.collect_timeout=600"], "rollout.episode_timeout=700"),
        (["rollout.request_timeout=700", "rollout.collect_timeout=600"], "rollout.request_timeout=700"),
    ],
)
def test_given_limits_that_contradict_each_other_are_refused(words: list[str], key: str) -> None:
    (found,) = check_generation(config(*words))
    assert str(found).startswith(key) and "which contains it" in str(found)


def test_the_whole_configuration_refuses_them_too() -> None:
    with pytest.raises(ConfigError, match=r"rollout\.request_timeout=700"):
        load_config(["domain=mock", "rollout.request_timeout=700", "rollout.episode_timeout=600"])


def test_the_comparison_of_weights_gets_the_time_of_its_tokens() -> None:
    """Two rows of 8,000 tokens on a processor that computes bfloat16 in software; few get the configured time."""
    limits = Limits.of(config())
    assert limits.scoring(16_000, least=300) == 16_000 / (4 * 2.0)
    assert limits.scoring(2_000, least=300) == 300
    assert Limits.of(config("rollout.tokens_per_second=20")).scoring(16_000, least=100) == 16_000 / 80
    gpus = load_config(["domain=mock", "cluster.n_gpus_per_node=2"], check=False)
    assert Limits.of(gpus).scoring(16_000, least=10) == 16_000 / (100 * 10.0)


def test_the_domains_of_a_validation_end_at_their_own_limit_or_at_the_time_of_all() -> None:
    limits = Limits.of(config("rollout.collect_timeout=5000"))
    assert limits.validation([(None, 1000)]) == (5000, 5000)
    assert limits.validation([(60.0, 10)]) == (60, 60)
    assert limits.validation([(None, 10), (None, 10), (60.0, 10)]) == (10060, 10060), "as one after the other"
    assert limits.validation([(60.0, 10), (90.0, 10)]) == (150, 90)
    assert Limits.of(config()).validation([(None, 3), (None, 4)])[0] == sum(map(Limits.of(config()).batch, (3, 4)))
