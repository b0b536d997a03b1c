"""tau2's user simulator with a message that is prepared outside: by a script, or by a model.

The next message is ready before tau2's orchestrator asks for it, so a slow user model delays only its own episode and
no thread waits. The user's own tool calls and their results stay in its history.
"""

from __future__ import annotations

from typing import Any, Protocol

from . import tau2_api as api
from .agents import shared_prompt

_GUIDELINES: dict[bool, str] = {}


class QueuedUser(api.UserSimulator):
    """tau2's user simulator, whose next message is put into ``queued`` instead of generated inside tau2's step."""

    queued: Any = None

    @property
    def global_simulation_guidelines(self) -> str:
        """tau2's own text, read once; tau2 reads it from a file for every episode."""
        with_tools = self.tools is not None
        if with_tools not in _GUIDELINES:
            _GUIDELINES[with_tools] = super().global_simulation_guidelines
        return _GUIDELINES[with_tools]

    @property
    def system_prompt(self) -> str:
        """tau2's own prompt, formatted once."""
        stock: Any = super()
        key = (type(self), self.tools is not None, self.instructions)
        return shared_prompt(key, lambda: stock.system_prompt)

    def set_seed(self, seed: int) -> None:
        """Keep the seed; tau2 records it."""
        self.seed = seed

    def history(self, message: Any, state: Any) -> list[Any]:
        """All messages that the user has seen, ``message`` included, as tau2's."""
        incoming = message.tool_messages if isinstance(message, api.MultiToolMessage) else [message]
        return [*state.messages, *incoming]

    def generate_next_message(self, message: Any, state: Any) -> tuple[Any, Any]:
        reply, self.queued = self.queued, None
        if reply is None:
            raise RuntimeError("tau2 asked the user for a message that nobody prepared")
        state.messages.extend([*self.history(message, state)[len(state.messages) :], reply])
        return reply, state


class UserBrain(Protocol):
    """Makes the user's next message. ``name`` is the user's name in scores."""

    name: str

    async def answer(self, user: QueuedUser, message: Any, state: Any) -> Any:
        """tau2's UserMessage that answers ``message``. Raises InfrastructureFault("user", ...) when it cannot."""
        ...
