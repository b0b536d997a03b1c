"""From a generation to a turn: parsed, counted, and recorded in its session."""

from __future__ import annotations

import time
from typing import Any

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.message import ParsedMessage
from tau2_lightning.rollout.engine.generation import Generation
from tau2_lightning.rollout.session.tree import Node

from .answers import Choice, assistant_message
from .errors import APIError
from .metrics import ProxyMetrics
from .prompts import Prepared


class Turns:
    """Finishes choices. ``temperature``: a recorded turn must be sampled with it to be trained on."""

    def __init__(self, chat_format: ChatFormat, metrics: ProxyMetrics, temperature: float) -> None:
        self._format, self._metrics, self._temperature = chat_format, metrics, temperature

    def finish(self, work: Prepared, generation: Generation, index: int = 0) -> Choice:
        """Parse choice ``index``, record it, and convert it to the client's form. Raises as ``record`` does."""
        parsed = self.parse(work, generation)
        return self.record(work, generation, assistant_message(work, parsed, index), parsed.invalid_format)

    def parse(self, work: Prepared, generation: Generation) -> ParsedMessage:
        """The sampled tokens as a message."""
        parsed = self._format.parse(
            generation.token_ids, tools=work.native_tools, prompt_tail=work.prompt_tail, stop=work.sampling.stop
        )
        return parsed if work.grammar is None else work.grammar.read(parsed)

    def record(self, work: Prepared, generation: Generation, message: dict[str, Any], invalid_format: bool) -> Choice:
        """Count a choice and, in a session, record it as ``message``.

        Raises InfrastructureFault when the engine gave up, APIError 409 when the session closed meanwhile.
        """
        if generation.finish_reason == "abort":
            raise InfrastructureFault("engine", "aborted", "the engine gave up on this request")
        reason = "stop" if self._cut(work, generation) else generation.finish_reason
        if message.get("tool_calls") and reason == "stop":
            reason = "tool_calls"
        self._metrics.completion(len(generation.token_ids), reason, invalid_format)
        if work.session is not None:
            self._remember(work, generation, message, invalid_format)
        return Choice(message, reason, generation)

    def _cut(self, work: Prepared, generation: Generation) -> bool:
        """Whether a stop string ended the text. The engine can overlook one that spans a special token."""
        if not work.sampling.stop:
            return False
        text = self._format.decode(generation.token_ids)
        return any(word in text for word in work.sampling.stop)

    def _remember(self, work: Prepared, generation: Generation, message: dict[str, Any], invalid_format: bool) -> None:
        session = work.session
        assert session is not None
        if session.closed:
            raise APIError(409, "session_closed", f"session {session.session_id} closed while this was sampled")
        node = Node(
            parent=work.parent,
            messages=work.new,
            reply=message,
            prompt=work.delta,
            generation=generation,
            completion_id=work.completion_id,
            setting=work.setting,
            invalid_format=invalid_format,
            ended=self._format.ended(generation.token_ids),
            altered=work.grammar.name if work.grammar else work.sampling.altered(self._temperature),
            began_s=time.monotonic() - generation.seconds - session.started_at,
        )
        session.add(node, [*work.prompt, *generation.token_ids])
