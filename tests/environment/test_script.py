"""The scripted user answers the questions that an honest agent asks, and nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tau2_lightning.environment.brains import ScriptedBrain
from tau2_lightning.environment.script import YES, Script, in_first_person
from tau2_lightning.environment.tau2_api import AssistantMessage, UserMessage

PARTS = SimpleNamespace(
    reason_for_call="You want to cancel your order. You have no use for it.",
    known_info="You are Mei Li in zip code 19122.",
    unknown_info="You do not remember your email address.",
    task_instructions="If the agent asks, you pay by gift card.\nYou ordered it by mistake. You are brief.###STOP###",
)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (
            "What is your email, or your name and zip code?",
            "I am Mei Li in zip code 19122. I do not remember my email ",
        ),
        ("May I have your user id?", "I am Mei Li"),
        ("What is the reason?", "I ordered it by mistake."),
        ("How would you like to pay?", "If the agent asks, I pay by gift card."),
        ("I will cancel it and write your zip code. Do you confirm this (yes/no)?", YES),
        ("How much data do you want?", "I do not need more data."),
    ],
)
def test_a_question_is_answered_out_of_the_instructions(asked: str, answered: str) -> None:
    answer = Script(PARTS).answer(asked, [])
    assert answer is not None and answer.startswith(answered)


def test_wishes_are_told_once() -> None:
    script = Script(PARTS)
    told = script.answer("Is there anything else?", ["If the agent asks, I pay by gift card."])
    assert told == "I ordered it by mistake. I am brief."
    assert script.answer("Is there anything else?", [f"If the agent asks, I pay by gift card. {told}"]) == (
        "No, that is all."
    )


@pytest.mark.parametrize(
    "text", ["Hm, toggle_data({broken})?", "Your name is Mei.", "I cancel it.", "Nice weather?", ""]
)
def test_what_is_no_known_question_is_not_answered(text: str) -> None:
    assert Script(PARTS).answer(text, []) is None


def test_a_user_with_one_text_as_instructions_answers_nothing() -> None:
    assert Script("You want a lamp. Your name is Mei.").answer("What is your name?", []) is None


@pytest.mark.parametrize(
    ("second", "first"),
    [
        ("You're Chen, and your dog is with you.", "I am Chen, and my dog is with me."),
        ("You name is Lei. If asked, you pay yourself.", "My name is Lei. If asked, I pay myself."),
        ("Youth", "Youth"),
    ],
)
def test_instructions_are_said_in_the_first_person(second: str, first: str) -> None:
    assert in_first_person(second) == first


def test_the_brain_opens_as_before_and_answers_between() -> None:
    task = SimpleNamespace(user_scenario=SimpleNamespace(instructions=PARTS))
    brain = ScriptedBrain(task, frozenset())
    history = [AssistantMessage(role="assistant", content="Hi!")]
    said = []
    for text in ("Who is calling?", "What is your email?", "Fine.", "Anything else? Goodbye!"):
        answer = brain.react(history)
        said.append(answer.content)
        history += [UserMessage(role="user", content=answer.content), AssistantMessage(role="assistant", content=text)]
    said.append(brain.react(history).content)
    assert said[0] == PARTS.reason_for_call, "the opening keeps tau2's words"
    assert said[1:3] == ["I am Mei Li in zip code 19122. I do not remember my email address."] * 2
    assert said[3:] == ["Okay, please go on.", "###STOP###"]
