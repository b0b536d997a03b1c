"""tau2's telecom solo episodes in the form that TRL expects: a class for ``GRPOTrainer(environment_factory=...)``.

TRL calls the class's public methods as tools. Here tau2's tools become such methods, with the type hints and docstrings
that TRL needs, in front of the same ``Dialogue`` that our own rollouts play. TRL has no tool that ends an episode: its
loop continues after every parsed call. The response template therefore leaves ``done`` unparsed, the loop ends on what
looks like text, and the reward function plays that last message.
"""

from __future__ import annotations

import copy
import inspect
import json
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from tau2_lightning.environment import Dialogue, EnvironmentSettings, find_task, training_reward
from tau2_lightning.environment.blueprints import blueprint

_TYPES = {"string": str, "integer": int, "number": float, "boolean": bool, "array": list, "object": dict}
DONE = "done"
LEFT_UNPARSED = r'<tool_call>(?!\n\{"name": "' + DONE + '")'


class EnvironmentClock:
    """Counts the seconds that this process spends inside tau2, for any player; it wraps Dialogue's methods."""

    def __init__(self) -> None:
        self.seconds = 0.0
        for name in ("__init__", "outcome"):
            setattr(Dialogue, name, self._timed(getattr(Dialogue, name)))
        for name in ("start", "reply"):  # in solo mode these never wait, so the wall clock measures them alone
            setattr(Dialogue, name, self._timed_async(getattr(Dialogue, name)))

    def take(self) -> float:
        """Return the seconds since the last call."""
        taken, self.seconds = self.seconds, 0.0
        return taken

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed

    def _timed_async(self, function: Callable[..., Any]) -> Callable[..., Any]:
        async def timed(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return await function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - started

        return timed


class _Episode:
    """The object that TRL pools: ``reset`` starts an episode; ``environment_class`` adds the tools."""

    settings: EnvironmentSettings

    def __init__(self) -> None:
        self._dialogue: Dialogue | None = None

    def reset(self, task_id: str, **_: Any) -> str:
        self._dialogue = Dialogue(find_task(self.settings.domain, task_id), self.settings)
        _now(self._dialogue.start())
        return str(self._dialogue.messages[-1]["content"])

    def _play(self, name: str, arguments: Mapping[str, Any]) -> str:
        dialogue = self._dialogue
        assert dialogue is not None
        if dialogue.done:  # too many errors or steps; TRL has no way to stop an episode
            return ""
        function = {"name": name, "arguments": json.dumps(dict(arguments))}
        _now(dialogue.reply({"role": "assistant", "tool_calls": [{"id": "call", "function": function}]}))
        return "" if dialogue.done else str(dialogue.messages[-1]["content"])

    def _finish(self, last: Mapping[str, Any]) -> float:
        """Play the message that TRL treated as the end, then return the reward."""
        dialogue = self._dialogue
        assert dialogue is not None
        if not dialogue.done and last["role"] != "assistant":
            dialogue.abort("out_of_room")
        elif not dialogue.done and DONE in str(last.get("content")):
            self._play(DONE, {})
        elif not dialogue.done:
            _now(dialogue.reply({"role": "assistant", "content": last.get("content") or ""}))
        return training_reward(dialogue.outcome(), self.settings)


def environment_class(settings: EnvironmentSettings) -> type[_Episode]:
    """Return the class for ``environment_factory``: a method for each tool of the domain except ``done``."""
    schemas = blueprint(settings.domain, settings.solo_mode).tool_schemas(thinking=False)
    functions = [schema["function"] for schema in schemas]
    methods = {function["name"]: _method(function) for function in functions if function["name"] != DONE}
    return type("Tau2Environment", (_Episode,), {"settings": settings, **methods})


def tau2_reward(completions: Sequence[Sequence[Mapping[str, Any]]], environments: Any, **_: Any) -> list[float]:
    """Return tau2's own reward of every episode, as TRL's reward function."""
    return [env._finish(messages[-1]) for messages, env in zip(completions, environments, strict=True)]


def response_template() -> dict[str, Any]:
    """Return TRL's template for Qwen3's tool calls that leaves ``done`` as text."""
    from trl.chat_template_utils import qwen3_template

    template: dict[str, Any] = copy.deepcopy(qwen3_template)
    calls = template["fields"]["tool_calls"]
    del calls["open"]
    calls["open_pattern"] = LEFT_UNPARSED
    return template


def _method(function: Mapping[str, Any]) -> Callable[..., str]:
    name = function["name"]
    properties = function["parameters"].get("properties", {})
    required = set(function["parameters"].get("required", ()))

    def method(self: _Episode, **arguments: Any) -> str:
        return self._play(name, arguments)

    kinds = {key: _TYPES.get(value.get("type", "string"), str) for key, value in properties.items()}
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for key in sorted(kinds, key=lambda key: key not in required):
        default = inspect.Parameter.empty if key in required else None
        parameters.append(
            inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kinds[key])
        )
    method.__name__ = method.__qualname__ = name
    method.__annotations__ = {**kinds, "return": str}
    method.__signature__ = inspect.Signature(parameters, return_annotation=str)  # type: ignore[attr-defined]
    described = "\n".join(f"    {key}: {value.get('description') or key}" for key, value in properties.items())
    summary = " ".join(function["description"].split("Args:")[0].split())
    method.__doc__ = f"{summary}\n\nArgs:\n{described}\n" if described else summary
    return method


def _now(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine that never waits."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise RuntimeError("an episode in solo mode waited for something")
