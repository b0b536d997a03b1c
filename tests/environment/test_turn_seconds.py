"""What the user and the tools took after each turn is part of an episode's outcome."""

from __future__ import annotations

import asyncio
from typing import Any

from tau2_lightning.environment import Dialogue, EnvironmentSettings, UserSettings, load_tasks


class SlowBrain:
    """The scripted user, slowly."""

    def __init__(self, brain: Any) -> None:
        self.brain, self.name = brain, brain.name

    async def answer(self, *arguments: Any) -> Any:
        await asyncio.sleep(0.03)
        return await self.brain.answer(*arguments)


async def test_seconds_of_user_and_tools_by_turn() -> None:
    settings = EnvironmentSettings("mock", user=UserSettings(kind="scripted"))
    dialogue = Dialogue(load_tasks("mock", "base")[0], settings)
    dialogue._brain = SlowBrain(dialogue._brain)
    await dialogue.start()
    call = {"id": "c", "type": "function", "function": {"name": "get_users", "arguments": "{}"}}
    await dialogue.reply({"role": "assistant", "content": None, "tool_calls": [call]})
    await dialogue.reply({"role": "assistant", "content": "goodbye"})
    seconds = dialogue.outcome().turn_seconds
    assert len(seconds) == 3
    (opening, _), (after_call, tools), (after_words, _) = seconds
    assert opening >= 0.029 and after_words >= 0.029 and after_call < 0.02 and tools > 0
