"""An agent of another project: it uses an OpenAI base URL and a key, and imports nothing of this project."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import openai


async def talk(client: openai.AsyncOpenAI, subject: str, turns: int = 2, **options: Any) -> tuple[float, list[str]]:
    """Hold a short conversation; return its reward (parity of the sum of its characters) and its completions' ids."""
    messages: list[Any] = [{"role": "user", "content": f"Say something about {subject}."}]
    completions, said = [], ""
    for _ in range(turns):
        answer = await client.chat.completions.create(model="policy", messages=messages, max_tokens=16, **options)
        completions.append(answer.id)
        said += answer.choices[0].message.content or ""
        messages += [answer.choices[0].message, {"role": "user", "content": "Go on."}]
    return float(sum(map(ord, said)) % 2), completions


class SpellingAgent:
    """A workflow for ``rollout.workflow._target_``, with a connection of its own."""

    def __init__(self, turns: int = 2) -> None:
        self.turns = turns

    async def run(self, data: Mapping[str, Any], *, base_url: str, api_key: str, **_: Any) -> dict[str, Any]:
        async with openai.AsyncOpenAI(base_url=base_url, api_key=api_key, max_retries=0) as client:
            reward, completions = await talk(client, data["task_id"][:20], self.turns)
        return {"reward": reward, "turn_rewards": {completions[0]: 0.25}}
