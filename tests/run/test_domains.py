"""``domain=[a,b]``: each domain has the configuration it would have alone, changed by its own keys."""

from __future__ import annotations

import pytest

from tau2_lightning.config.secrets import without_secrets
from tau2_lightning.errors import ConfigError
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.show import configuration
from tau2_lightning.run.sweep import sweep

THREE = "domain=[telecom,retail,airline]"
PLAYED = (THREE, "econfig.user=scripted", "domains.telecom.econfig.solo_mode=true")


def wrong(*words: str, check: bool = False) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as error:
        load_config(words, check=check)
    return [(one.key, f"{one.problem} {one.remedy}") for one in error.value.violations]


def test_each_domain_has_what_it_would_have_alone() -> None:
    config = load_config(PLAYED)
    assert list(config.by_domain) == ["telecom", "retail", "airline"] == list(config.weights)
    assert set(config.weights.values()) == {1.0} and config.econfig.domain == "telecom+retail+airline"
    alone = {"telecom": ["econfig.solo_mode=true"], "retail": [], "airline": []}
    for name, words in alone.items():
        one, view = load_config([f"domain={name}", "econfig.user=scripted", *words]), config.by_domain[name]
        assert (view.econfig, view.train_dataset, view.valid_dataset) == (
            one.econfig,
            one.train_dataset,
            one.valid_dataset,
        )
    assert config.by_domain["telecom"].train_dataset.split == "full_minus_test"
    assert [view.econfig.policy for view in config.by_domain.values()] == ["ticket", "full", "full"]


def test_a_domain_differs_in_the_keys_that_are_given_for_it() -> None:
    config = load_config([
        *PLAYED, "econfig.max_steps=70", "valid_dataset.limit=9", "domains.retail.weight=2",
        "domains.retail.econfig.max_steps=50", "domains.retail.valid_dataset.limit=3",
        "domains.airline.train_dataset.split=base", "domains.retail.econfig.user_llm_args.temperature=0.5",
    ])  # fmt: skip
    views = config.by_domain
    assert [view.econfig.max_steps for view in views.values()] == [70, 50, 70]
    assert [view.valid_dataset.limit for view in views.values()] == [9, 3, 9]
    assert views["airline"].train_dataset.split == "base" and config.weights["retail"] == 2.0
    assert views["retail"].econfig.user_llm_args == {"temperature": 0.5} and not views["airline"].econfig.user_llm_args


def test_one_domain_alone_has_no_domains() -> None:
    for words in (["domain=retail"], ["domain=[retail]"], ["econfig.domain=retail"]):
        config = load_config([*words, "domains.retail.econfig.max_steps=50"], check=False)
        assert config.domains == {} and config.by_domain == {"retail": config}
        assert (config.econfig.domain, config.econfig.max_steps) == ("retail", 50)


def test_an_experiment_may_choose_several() -> None:
    config = load_config(["experiment=mixture"])
    assert config.weights == {"telecom": 1.0, "retail": 2.0, "airline": 1.0}
    assert [view.econfig.solo_mode for view in config.by_domain.values()] == [True, False, False]
    assert load_config(["experiment=mixture", "domain=[mock,airline]"], check=False).weights == {
        "mock": 1.0,
        "airline": 1.0,
    }


def test_values_for_a_sweep_stay_a_sweep(tmp_path: object) -> None:
    jobs = sweep([f"domain={THREE[7:]},mock", "econfig.user=scripted", f"output_dir={tmp_path}"])
    assert [list(job.config.by_domain) for job in jobs] == [["telecom", "retail", "airline"], ["mock"]]
    ((key, told),) = wrong("domain=telecom,retail")
    assert key == "domain" and "domain=[telecom,retail]" in told and "--multirun" in told


@pytest.mark.parametrize(
    ("words", "key", "told"),
    [
        (["domain=[telecom,telecom]"], "domain", "different"),
        (["domain=[]"], "domain", "different"),
        ([THREE, "econfig.domain=mock"], "econfig.domain", "telecom, retail, airline"),
        ([THREE, "domains.mock.econfig.max_steps=9"], "domains.mock.econfig.max_steps", "mock is not a domain"),
        ([THREE, "domains.retail.econfig.turn_discount=0.5"], "domains.retail.econfig.turn_discount", "whole run"),
        ([THREE, "domains.retail.econfig.user_engine.path=x"], "domains.retail.econfig.user_engine", "whole run"),
        ([THREE, "domains.retail.train_dataset.batch_size=2"], "domains.retail.train_dataset.batch_size", "whole run"),
        ([THREE, "domains.retail.weight=0"], "domains.retail.weight", "greater than 0"),
        ([THREE, "domains.retail.weight=nan"], "domains.retail.weight", ""),
        ([THREE, "domains.retail.econfig.max_stepz=9"], "domains.retail.econfig.max_stepz", "econfig.max_steps?"),
        ([THREE, "domains.retail.wight=9"], "domains.retail.wight", "Did you mean domains.retail.weight?"),
        ([THREE, "domains.retail.max_steps=9"], "domains.retail.max_steps", "mean domains.retail.econfig.max_steps?"),
        ([THREE, "domains.retail.batch_size=3"], "domains.retail.batch_size", "whole run Set train_dataset.batch_size"),
        ([THREE, "domains.retail.actor.path=x"], "domains.retail.actor", "whole run Set actor instead"),
        ([THREE, "domains.retail.econfig.max_steps=1"], "domains.retail.econfig.max_steps", "greater than or equal"),
    ],
)
def test_what_cannot_be_is_named(words: list[str], key: str, told: str) -> None:
    ((found, text),) = wrong(*words)
    assert found == key and told in text


@pytest.mark.parametrize("weight", ["0", "-1", "two"])
def test_a_wrong_weight_is_named_together_with_what_the_rules_find(weight: str) -> None:
    found = wrong(*PLAYED, f"domains.retail.weight={weight}", "domains.airline.econfig.policy=ticket", check=True)
    assert [key for key, _ in found] == ["domains.retail.weight", "domains.airline.econfig.policy"]


def test_a_mapping_of_domains_that_is_none_is_named() -> None:
    found = wrong("++domains=3", check=True)
    assert found and found[0][0] == "domains"


@pytest.mark.parametrize("check", [False, True])
def test_a_list_in_the_place_of_one_domain_says_where_it_goes(check: bool) -> None:
    ((key, told),) = wrong("econfig.domain=[telecom,retail]", check=check)
    assert key == "econfig.domain" and "Write domain=[telecom,retail]" in told
    found = wrong("econfig.domain=null", check=check)
    assert [key for key, _ in found] == ["econfig.domain"]


def test_a_weight_of_a_domain_that_is_not_in_the_run_is_refused() -> None:
    assert wrong("domain=telecom", "domains.retail.weight=2")


def test_the_rules_check_every_domain_and_name_its_keys() -> None:
    found = wrong(
        *PLAYED, "domains.retail.train_dataset.split=nope", "domains.airline.econfig.policy=ticket", check=True
    )
    assert {key for key, _ in found} == {"domains.retail.train_dataset.split", "domains.airline.econfig.policy"}
    # A wrong value of the schema is reported together with what the rules find.
    found = wrong(*PLAYED, "domains.retail.econfig.max_steps=1", "domains.airline.econfig.policy=ticket", check=True)
    assert {key for key, _ in found} == {"domains.retail.econfig.max_steps", "domains.airline.econfig.policy"}
    ((key, told),) = wrong("domain=[telecom,retail]", check=True)
    assert key == "domains.retail.econfig.user_llm_base_url" and "scripted" in told


def test_no_secret_of_a_domain_is_written_or_shown(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*PLAYED, "domains.retail.econfig.user_llm_api_key=sk-hidden", "econfig.user_llm_api_key=sk-hidden"]
    config = load_config(words)
    assert config.by_domain["retail"].econfig.user_llm_api_key == "sk-hidden"
    assert "sk-hidden" not in str(without_secrets(config)) + repr(config)
    configuration(words, "job", None, resolve=False)
    assert "sk-hidden" not in capsys.readouterr().out
