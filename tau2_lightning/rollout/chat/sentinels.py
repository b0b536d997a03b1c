"""Conversations made of unique words (sentinels), which must reach the prompt when a chat template renders them."""

from __future__ import annotations

import json
from typing import Any

SYSTEM, TICKET, USER, SECOND_USER = "zqsystemtext", "zqtickettext", "zqusertext", "zqseconduser"
GREETING, ANSWER, RESULT, SECOND_RESULT = "zqgreeting", "zqanswer", "zqfirstresult", "zqsecondresult"
REASONING = "zqreasoning"
NAME, DESCRIPTION, ARGUMENT, ARGUMENT_HELP = "zq_lookup", "zqdescription", "zq_text", "zqargumenthelp"
SECOND_NAME = "zq_other"
VALUE, SECOND_VALUE = "zqvalue", "zqothervalue"

#: Arguments of every JSON type. The text has the characters that call formats often handle wrongly.
ARGUMENTS: dict[str, Any] = {
    ARGUMENT: f'{VALUE} "quoted", it\'s <b>bold</b> é',
    "zq_count": 3,
    "zq_flag": True,
    "zq_list": ["one", "two"],
    "zq_object": {"zq_inner": "deep"},
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": NAME,
            "description": DESCRIPTION,
            "parameters": {
                "type": "object",
                "properties": {
                    ARGUMENT: {"type": "string", "description": ARGUMENT_HELP},
                    "zq_count": {"type": "integer", "description": "A number."},
                    "zq_flag": {"type": "boolean", "description": "Yes or no."},
                    "zq_list": {"type": "array", "items": {"type": "string"}, "description": "Words."},
                    "zq_object": {
                        "type": "object",
                        "properties": {"zq_inner": {"type": "string", "description": "A word."}},
                        "description": "Parts.",
                    },
                },
                "required": [ARGUMENT],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": SECOND_NAME,
            "description": "Another.",
            "parameters": {
                "type": "object",
                "properties": {ARGUMENT: {"type": "string", "description": "A word."}},
                "required": [ARGUMENT],
            },
        },
    },
]


def call(name: str, arguments: dict[str, Any], number: int) -> dict[str, Any]:
    """A call as OpenAI's clients send it, with an id of the same form as the proxy's."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{number:024d}0000", "type": "function", "function": function}


def said(role: str, content: str, **more: Any) -> dict[str, Any]:
    """A message."""
    return {"role": role, "content": content, **more}


def result(content: str, number: int) -> dict[str, Any]:
    """The result of call ``number``."""
    return said("tool", content, tool_call_id=call(NAME, {}, number)["id"])


SYSTEM_TURN, USER_TURN, SECOND_USER_TURN = said("system", SYSTEM), said("user", USER), said("user", SECOND_USER)
ANSWER_TURN, GREETING_TURN = said("assistant", ANSWER), said("assistant", GREETING)
CALL_TURN = said("assistant", "", tool_calls=[call(NAME, ARGUMENTS, 1)])
PARALLEL_TURN = said(
    "assistant", "", tool_calls=[call(NAME, ARGUMENTS, 1), call(SECOND_NAME, {ARGUMENT: SECOND_VALUE}, 2)]
)
RESULT_TURN, SECOND_RESULT_TURN = result(RESULT, 1), result(SECOND_RESULT, 2)
SOLO_SYSTEM_TURN = said("system", f"<policy>\n{SYSTEM}\n</policy>\n<ticket>\n{TICKET}\n</ticket>")

OPENING = [SYSTEM_TURN, USER_TURN]
#: Solo mode of telecom: the ticket is part of the system text, and no user speaks.
SOLO = [SOLO_SYSTEM_TURN]
#: tau2's dialogues: the assistant greets first.
GREETED = [SYSTEM_TURN, GREETING_TURN, USER_TURN]
ANSWERED = [*OPENING, ANSWER_TURN, SECOND_USER_TURN]
CALLED = [*OPENING, CALL_TURN, RESULT_TURN]
PARALLEL = [*OPENING, PARALLEL_TURN, RESULT_TURN, SECOND_RESULT_TURN]
WHOLE = [*CALLED, ANSWER_TURN, SECOND_USER_TURN]
