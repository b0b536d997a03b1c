"""Test each rule for faults of the user by itself, then all rules on 500 injected faults and 500 clean dialogues."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tau2_lightning.environment.user_faults import KINDS, Scenario, find_user_faults
from tests.environment.user_fault_cases.measure import false_alarms, found_by_kind
from tests.environment.user_fault_cases.sets import ALL

INSTRUCTIONS = """Instructions:
	Domain: retail
	Reason for call:
		You want to exchange the keyboard of your order #W2378156 for a clicky one.
	Known info:
		You are Yusuf Rossi in zip code 19122. Your user id is yusuf_rossi_9620.
	Unknown info:
		You do not remember your email address.
	Task instructions:
		If the agent asks for a reason, say 'You never know what breaks next'.
		You are detail-oriented and want to make sure everything is addressed in one go."""
SCENARIO = Scenario(
    INSTRUCTIONS, guidelines="Disclose information progressively.", facts="You are Yusuf Rossi in zip code 19122."
)
OPENING = [("a", "Hi! How can I help you today?"), ("u", "Hello, I would like to exchange a keyboard.")]


def dialogue(*turns: tuple[str, Any]) -> list[dict[str, Any]]:
    """Messages from (who, text) pairs. ``who`` is ``a`` (agent), ``u`` (user), ``t`` (the user's tool result), ``c``
    (the user calls the tool ``text``) or ``name`` (the agent calls the tool ``text``)."""
    made: list[dict[str, Any]] = []
    for who, text in turns:
        calls = [{"name": text}] if who in ("c", "name") else None
        role = {"a": "assistant", "name": "assistant", "t": "tool"}.get(who, "user")
        made.append(
            {
                "role": role,
                "content": None if calls else text,
                "tool_calls": calls,
                "requestor": "user" if who == "t" else None,
            }
        )
    return made


def kinds(*turns: tuple[str, Any], scenario: Scenario = SCENARIO, opening: bool = True) -> list[tuple[str, int]]:
    """(kind, index of the turn after the opening) of the faults found."""
    before = OPENING if opening else []
    return [(fault.kind, fault.turn - len(before)) for fault in find_user_faults(scenario, dialogue(*before, *turns))]


def after(said: str, asked: str = "What would you like to do next?") -> list[str]:
    return [kind for kind, _ in kinds(("a", asked), ("u", said))]


@pytest.mark.parametrize(
    "said",
    [
        "How can I help you today?",
        "I\u2019d be happy to assist you with your exchange! Could you please provide your order number?",
        "Thank you for contacting us. May I have your full name?",
        "Your refund has been processed to your original payment method.",
        "I have cancelled your order. Is there anything else I can help you with?",
        "Let me look up your account.",
        "Customer service agent: one moment please.",
        "I can transfer you to a human agent.",
        "Your card was charged $40.",
        "Your plan is now active.",
        "Unfortunately, we are unable to process your refund.",
        "What else can I help you with?",
    ],
)
def test_speaking_as_the_agent(said: str) -> None:
    assert after(said) == ["speaks_as_agent"]


@pytest.mark.parametrize(
    "said",
    [
        'You said "Your refund has been processed", but I see nothing.',
        "Can you help me with that? I apologize for the confusion.",
        "Could you please provide the tracking number, and confirm your return policy?",
        "Is there anything else you need from me?",
        "I have checked your website and I can't find it. Let me check my email.",
        "Thank you for your help and your patience! I'll get back to you.",
        "As your agent told me last week, I can help myself to a refund?",
        "I'm sorry, I don't understand your policy. Would you transfer me to your supervisor?",
        "Your service has been terrible, and your website is now down.",
        "Your order page is empty.",
    ],
)
def test_a_customer_may_say_this(said: str) -> None:
    assert after(said) == []


@pytest.mark.parametrize(
    "said",
    [
        "My instructions don't mention that.",
        "The scenario does not say which one.",
        "I am supposed to pretend to be a customer.",
        "You are detail-oriented and want to make sure everything works.",
        "Please disclose information progressively.",
        "Task instructions: be brief.",
        "If the agent asks for a reason, I have one.",
        "The user is satisfied now.",
        "My character wants a refund.",
        "This conversation is a simulation.",
    ],
)
def test_leaking_the_instructions(said: str) -> None:
    assert after(said) == ["leaks_instructions"]


@pytest.mark.parametrize(
    "said",
    [
        "I followed your instructions, and the instructions on the box.",
        "The user id is yusuf_rossi_9620, and complaining is not in my character.",
        "Well, you never know what breaks next.",
        "I am detail-oriented and want to make sure everything is addressed in one go.",
        "I want to exchange the keyboard of my order #W2378156 for a clicky one.",
    ],
)
def test_playing_by_the_instructions_is_no_leak(said: str) -> None:
    assert after(said) == []


def test_what_the_agent_has_said_before_and_what_a_script_reads_aloud_are_no_leaks() -> None:
    recital = "You are Yusuf Rossi in zip code 19122, right?"
    assert kinds(("a", recital), ("u", f"You asked: {recital} Yes.")) == []
    reads = Scenario(INSTRUCTIONS, aloud="You want to exchange the keyboard of your order #W2378156 for a clicky one.")
    said = ("u", "You want to exchange the keyboard of your order #W2378156 for a clicky one.")
    assert kinds(OPENING[0], said, scenario=reads, opening=False) == []
    assert kinds(OPENING[0], said, opening=False) == [("leaks_instructions", 1)]


QUESTION = "Would you like me to proceed with the exchange?"


@pytest.mark.parametrize(
    ("asked", "said", "found"),
    [
        (QUESTION, "###STOP###", True),
        (QUESTION, "Yes, please! ###STOP###", True),
        ("Let me check that for you, one moment.", "Thanks. ###STOP###", True),
        ("Please turn your phone off and on again.", "###STOP###", True),
        ("I'd like to know whether the light is on.", "###STOP###", True),
        ("I can't continue without your decision.", "Thanks. ###STOP###", True),
        ("Done. What else can I do for you?", "###STOP###", False),
        (QUESTION, "No, thanks, I'd rather keep it. ###STOP###", False),
        ("Your exchange is done. Is there anything else I can help you with?", "That's all, thanks. ###STOP###", False),
        ("You're welcome! Goodbye!", "###STOP###", False),
        ("Unfortunately, this order cannot be exchanged.", "I see, thank you. ###STOP###", False),
        ("If you need any further assistance, please let me know!", "###STOP###", False),
        ("The exchange has been requested. You will receive an email with the label.", "Great! ###STOP###", False),
        ("Thank you, I have everything.", "###OUT-OF-SCOPE###", True),
        ("What is your zip code?", "###OUT-OF-SCOPE###", True),
        ("What is the colour of your kitchen?", "###OUT-OF-SCOPE###", False),
    ],
)
def test_stopping_early(asked: str, said: str, found: bool) -> None:
    assert after(said, asked) == (["stops_early"] if found else [])


def test_stopping_in_the_first_turn() -> None:
    assert kinds(OPENING[0], ("u", "I want to exchange a keyboard. ###STOP###"), opening=False) == [("stops_early", 1)]


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (QUESTION, True),
        ("I cannot do this. Would you like me to transfer you to a human agent?", True),
        ("I am unable to transfer you.", True),
        ("You are being transferred to a human agent. Please hold on.", False),
        ("I'm now connecting you with a specialist.", False),
    ],
)
def test_transferring_early(asked: str, found: bool) -> None:
    assert after("###TRANSFER###", asked) == (["transfers_early"] if found else [])


def test_a_call_of_the_transfer_tool_is_a_transfer() -> None:
    assert kinds(("name", "transfer_to_human_agents"), ("a", "Please hold."), ("u", "###TRANSFER###")) == []


@pytest.mark.parametrize(
    "said",
    [
        "It is #W9999999.",
        "My id is yusuf_rossi_1111.",
        "yusuf@example.com",
        "Zip 90210.",
        "Call 555-123-9999.",
        "Card ending in 4242.",
        "Card ending in 1999.",
    ],
)
def test_inventing_ids(said: str) -> None:
    assert after(said) == ["invents_ids"]


@pytest.mark.parametrize(
    "said",
    [
        "order w2378156", "Order # W2378156", "2378156", "W-2378156", "Yusuf Rossi 9620, YUSUF_ROSSI_9620",
        "zip 1 9 1 2 2", "19122",
        "I paid $12345.50 on 2024-05-20 for 2 TB, 10000 mAh, 1920x1080.", "The agent told me 5550001111.",
    ],
)  # fmt: skip
def test_ids_that_somebody_told_in_any_spelling(said: str) -> None:
    assert after(said, "I can see 555-000-1111. What else?") == []


def test_ids_from_the_users_own_tools_are_known() -> None:
    report = ("u", "It shows SIM 8812345678.")
    assert kinds(("a", "Please look."), ("c", "check_sim"), ("t", "SIM: 8812345678"), report) == []
    assert kinds(("a", "Please look."), report) == [("invents_ids", 1)]


ASKS = [
    ("a", "Could you please provide your order number?"),
    ("a", "I need the order number to go on. Can you tell me the order number?"),
]


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("The weather is nice.", "My dog is called Bello.", True),
        ("The weather is nice.", "I don't remember it.", False),
        ("It's W2378156.", "My dog is called Bello.", False),
        ("Where do I find the order number?", "My dog is called Bello.", False),
        ("Dogs are lovely, aren't they?", "I am watering my plants.", True),
        ("Is my keyboard in stock?", "And why do you want the order number?", False),
    ],
)
def test_ignoring_a_question_put_twice(first: str, second: str, found: bool) -> None:
    assert kinds(ASKS[0], ("u", first), ASKS[1], ("u", second)) == ([("ignores_question", 3)] if found else [])


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("The weather is nice.", "I prefer tea.", True),
        ("Blue, please.", "My dog is called Bello.", False),
        ("The weather is nice.", "The grey one.", False),
        ("The weather is nice.", "I want a clicky keyboard like the one in my order.", False),
    ],
)
def test_the_same_matter_in_other_words(first: str, second: str, found: bool) -> None:
    """A bare answer and a turn about the scenario are answers."""
    asked, again = "In which colour would you like the mouse pad?", "I still have to know the colour of the mouse pad."
    assert kinds(("a", asked), ("u", first), ("a", again), ("u", second)) == (
        [("ignores_question", 3)] if found else []
    )


def test_another_question_is_not_the_same_one() -> None:
    other = ("a", "What is your email address?")
    assert kinds(ASKS[0], ("u", "The weather is nice."), other, ("u", "My dog is called Bello.")) == []


@pytest.mark.parametrize("said", ["", "  \n", "...", "__", "(no response)", "[silence]", None])
def test_saying_nothing(said: str | None) -> None:
    assert kinds(("a", "What else?"), ("u", said)) == [("empty_turn", 1)]


def test_saying_it_again() -> None:
    text = "The keyboard that I have is far too loud for my office."
    assert kinds(("a", "Why?"), ("u", text), ("a", "I see. Which colour do you want?"), ("u", text.upper())) == [
        ("repeats_itself", 3)
    ]
    assert kinds(("a", "Why is that?"), ("u", text), ("a", "Why is that, please?"), ("u", text)) == []
    excuse = ("u", "I don't have that information with me right now.")
    assert kinds(("a", "Your zip code?"), excuse, ("a", "And your email address?"), excuse) == []
    excuse = ("u", "I don't know. I lost the letter from the bank yesterday.")
    assert kinds(("a", "Your zip code?"), excuse, ("a", "Which colour do you like?"), excuse) == [("repeats_itself", 3)]
    yes = ("u", "Yes, please go ahead with that.")
    assert kinds(("a", "Shall I change it?"), yes, ("a", "Refund to your card?"), yes) == []


def test_messages_of_the_tasks_own_history_are_not_the_users() -> None:
    said = dialogue(("u", "How can I help you today?"), ("a", "Hello!"), ("u", "How can I help you today?"))
    assert {fault.turn for fault in find_user_faults(Scenario("You call.", history=1), said)} == {2}


@pytest.mark.parametrize(
    "piece", ["i am not now also just ", "your new current ", "1", "_a", "a.b-", "'a", "\ud83d ", "i can't ", "\u200b"]
)
def test_a_model_that_babbles_on_does_not_hold_up_the_others(piece: str) -> None:
    """Without a limit, some of these texts took minutes."""
    long = piece * (200_000 // len(piece))
    began = time.monotonic()
    kinds(("a", long), ("u", long), ("a", long), ("u", "Yes. " + long + "###STOP###"))
    assert time.monotonic() - began < 10


def test_the_end_of_a_long_text_counts() -> None:
    assert after("word " * 5000 + "###TRANSFER###") == ["transfers_early"]


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_500_injected_faults_are_found_with_their_kind(seed: int) -> None:
    """Texts of all sets; `python -m benchmarks.user_faults --sets` measures each."""
    table, missed = found_by_kind(ALL, 500, seed)
    assert sum(injected for _, injected, _ in table.values()) == 500 and set(table) == set(KINDS)
    assert len(missed) <= 15, "\n".join(missed)
    assert all(right >= 0.75 * injected for right, injected, _ in table.values()), table
    assert all(injected >= 60 for _, injected, _ in table.values()), table


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_500_clean_dialogues_raise_no_alarm(seed: int) -> None:
    """The scripted user plays with gold agents of all domains; dialogues are tested as played and with more turns."""
    for texts in (None, ALL):
        alarms = false_alarms(500, seed, texts=texts)
        assert len(alarms) <= 5, "\n".join(alarms)
