"""Helpers that request one sampled turn through the proxy, plain or streamed, and return the answer and the record."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tau2_lightning.rollout.proxy.settings import ProxySettings
from tau2_lightning.rollout.session.tree import Node, Session
from tests.rollout.proxy.rig import TOOLS, Rig

USER: list[dict[str, Any]] = [{"role": "user", "content": "x"}]
#: A call of ``look`` in the format of each of our own parsers; ``%s`` stands for the arguments.
FORMS = {
    "hermes": '<tool_call>\n{"name": "look", "arguments": %s}\n</tool_call>',
    "llama3_json": '{"name": "look", "parameters": %s}',
    "mistral": '[TOOL_CALLS][{"name": "look", "arguments": %s}]',
    "mistral_named": "[TOOL_CALLS]look[ARGS]%s",
}


def rig_of(form: str, template: str = "qwen3") -> Rig:
    """A proxy whose parser reads ``form``."""
    return Rig(ProxySettings(request_timeout=10, max_new_tokens=20_000), template, form.removesuffix("_named"))


@dataclass(frozen=True)
class Turn:
    """The message and finish reason that a client got, and the recorded turn of its session."""

    message: dict[str, Any]
    reason: str
    node: Node
    session: Session

    @property
    def calls(self) -> list[tuple[str, str]]:
        """Name and arguments of the calls."""
        return [(c["function"]["name"], c["function"]["arguments"]) for c in self.message.get("tool_calls") or ()]

    @property
    def seen(self) -> tuple[Any, ...]:
        """What must not depend on whether the answer was streamed."""
        thought = self.message.get("reasoning_content") or ""
        return self.message.get("content") or "", thought, self.calls, self.reason, self.node.invalid_format


async def turn(rig: Rig, said: str | list[int], *, stream: bool = False, **body: Any) -> Turn:
    """Let the engine sample ``said`` once, in a new session."""
    session = rig.store.start(tools=TOOLS)
    rig.engine.script.append(said)
    body = {"messages": USER, **body}
    if stream:
        message, reason = assembled(await chunks(rig, session.api_key, body))
    else:
        answer = await rig.post(session.api_key, body)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        message, reason = choice["message"], choice["finish_reason"]
    (node,) = session.nodes
    return Turn(message, reason, node, session)


async def both(rig: Rig, said: str | list[int], **body: Any) -> Turn:
    """Return the plain turn after checking that the streamed one is equal."""
    plain, streamed = await turn(rig, said, **body), await turn(rig, said, stream=True, **body)
    assert plain.seen == streamed.seen
    return plain


async def chunks(rig: Rig, key: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events of a streamed request, none of which is an error."""
    headers = {"Authorization": f"Bearer {key}"}
    async with rig.http.stream("POST", "/chat/completions", json={**body, "stream": True}, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        lines = [line async for line in answer.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]", lines[-1]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
    assert not any("error" in event for event in events), events
    return events


def assembled(events: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], str]:
    """Join the chunks of one choice to a message and finish reason, as OpenAI's client does."""
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": "", "tool_calls": []}
    reason = ""
    for event in events:
        for choice in event["choices"]:
            reason = choice["finish_reason"] or reason
            for key in ("content", "reasoning_content"):
                message[key] += choice["delta"].get(key) or ""
            for call in choice["delta"].get("tool_calls", ()):
                if call["index"] == len(message["tool_calls"]):
                    message["tool_calls"].append({"id": call["id"], "type": "function", "function": {"arguments": ""}})
                function = message["tool_calls"][call["index"]]["function"]
                function["name"] = function.get("name", "") + (call["function"].get("name") or "")
                function["arguments"] += call["function"].get("arguments") or ""
    return message, reason
