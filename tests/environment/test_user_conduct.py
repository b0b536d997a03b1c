"""An episode in which the user breaks its rules is kept and counted, excluded, or played again, as configured."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings, load_tasks
from tau2_lightning.environment.user_conduct import FAULTS
from tau2_lightning.errors import UserMisbehaved
from tests.environment.helpers import play, says, scripted, solo, unjudged
from tests.environment.test_users import text
from tests.environment.user_server import serving

TASK = load_tasks("retail", "train")[0]
FLIPPED, GOOD, END = text("How can I help you today?"), text("I need help with my order."), text("###STOP###")


def settings(url: str, rule: Any) -> EnvironmentSettings:
    user = UserSettings("llm", llm="user-7b", base_url=url)
    return EnvironmentSettings("retail", user=user, user_faults=rule, unjudged=True)


async def outcome(rule: Any, *answers: Any) -> Any:
    async with serving(*answers) as (_, url):
        return (await play(TASK, settings(url, rule), [says("Goodbye!")])).outcome()


async def test_a_kept_episode_counts_the_faults_of_its_user() -> None:
    assert (await outcome("keep", FLIPPED, END)).user_faults == {"speaks_as_agent": 1}
    assert (await outcome("keep", GOOD, END)).user_faults == {}
    assert (await outcome("exclude", GOOD, END)).user_faults == {}


async def test_the_record_shows_a_fault_at_its_turn() -> None:
    messages = (await outcome("keep", FLIPPED, END)).simulation["messages"]
    (noted,) = [message["raw_data"] for message in messages if message.get("raw_data")]
    assert noted == {FAULTS: [{"kind": "speaks_as_agent", "evidence": "how can i help"}]}
    assert messages[1]["raw_data"] is noted


async def test_scripts_and_solo_episodes_have_none() -> None:
    dialogue = await play(TASK, unjudged("retail", user_faults="exclude"), [says("Goodbye!")])
    assert dialogue.outcome().user_faults == {}
    alone = Dialogue(load_tasks("telecom", "train", solo_mode=True)[0], solo(user_faults="exclude"))
    await alone.start()
    alone.abort("enough")
    assert alone.outcome().user_faults == {}


@pytest.mark.parametrize(("rule", "again"), [("exclude", False), ("retry", True)])
async def test_an_episode_that_is_no_score_names_the_turn(rule: str, again: bool) -> None:
    with pytest.raises(UserMisbehaved, match="user: speaks_as_agent: message 1: how can i help") as caught:
        await outcome(rule, FLIPPED, END)
    assert (caught.value.component, caught.value.cause, caught.value.again) == ("user", "speaks_as_agent", again)


def test_a_rule_that_is_none_is_refused() -> None:
    bad = replace(scripted("retail"), user_faults=cast("Any", "maybe"))
    assert [found.key for found in bad.violations()] == ["econfig.user_faults"]
