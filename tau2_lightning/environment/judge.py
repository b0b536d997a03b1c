"""The judge of natural-language assertions: tau2 phrases the question and reads the verdict, the model client asks.

tau2's evaluator asks its judge in a blocking call, of a model that it chooses itself. Here the same request goes to the
configured model when an episode ends, and the evaluator gets the answer handed in. A judge that cannot be reached, or
whose verdict cannot be read, is a fault of the component ``judge``; it never decides a reward.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from tau2_lightning.config.secrets import masked

from . import tau2_api as api
from .model_client import client_for
from .model_endpoint import ModelEndpoint
from .model_faults import BadReply
from .settings import EnvironmentSettings, JudgeSettings
from .user_thinking import split_thoughts

# As in tau2, whose judge is gpt-4.1-2025-04-14.
DEFAULT_ARGUMENTS: Mapping[str, Any] = {"temperature": 0.0}


def needs_judge(task: Any) -> bool:
    """Whether a model has to decide on NL assertions for the reward of ``task`` (tau2's, with the basis in force)."""
    criteria = task.evaluation_criteria
    return (
        criteria is not None and api.RewardType.NL_ASSERTION in criteria.reward_basis and bool(criteria.nl_assertions)
    )


def judge_stamp(settings: EnvironmentSettings) -> dict[str, Any]:
    """What decides on NL assertions, for comparing scores: the model, its arguments without secrets, a digest of tau2's
    question."""
    return {
        "model": settings.judge.llm,
        "arguments": masked("econfig.judge_llm_args", _arguments(settings.judge)),
        "prompt_sha256": _prompt_digest(),
    }


async def verdict_on(orchestrator: Any, settings: EnvironmentSettings, seed: int) -> str | None:
    """The judge's verdict, as the text that tau2 reads, on the episode that ``orchestrator`` has played to its end.

    None where none is needed: tau2 scores only episodes that agent or user have ended, and only some have assertions.
    Raises InfrastructureFault("judge", ...).
    """
    reasons, task = api.TerminationReason, orchestrator.task
    if orchestrator.termination_reason not in {reasons.AGENT_STOP, reasons.USER_STOP} or not needs_judge(task):
        return None
    assertions = list(task.evaluation_criteria.nl_assertions)
    request = {"messages": api.judge_request(orchestrator.trajectory, assertions), **_arguments(settings.judge)}

    def read(response: Any) -> str:
        return _verdict(response, len(assertions))

    # Another seed for another try: the same would repeat an unusable verdict.
    client = client_for(ModelEndpoint.of("judge", settings.judge))
    return await client.ask(lambda attempt: {"seed": seed + attempt, **request}, read)


def verdict_of(simulation: Any) -> str | None:
    """The verdict, as the text that tau2 reads, in the reward info of a tau2 SimulationRun; None without one."""
    checks = simulation.reward_info.nl_assertions if simulation.reward_info is not None else None
    if not checks:
        return None
    return _text([(check.nl_assertion, check.met, check.justification) for check in checks])


def _arguments(judge: JudgeSettings) -> dict[str, Any]:
    return dict(judge.llm_args or DEFAULT_ARGUMENTS)


@cache
def _prompt_digest() -> str:
    question = json.dumps(api.judge_request([], ["an assertion"]), sort_keys=True)
    return hashlib.sha256(question.encode()).hexdigest()


def _verdict(response: Any, count: int) -> str:
    """The verdict in a chat completion on ``count`` assertions. Raises BadReply unless it decides on every one.

    tau2 takes a verdict on fewer assertions, or on none, as success. Models wrap the object in thoughts or Markdown.
    """
    if not getattr(response, "choices", None):
        raise BadReply("an answer without choices")
    said, _ = split_thoughts(response.choices[0].message.content or "", "auto")
    try:
        results = json.loads(said[said.find("{") : said.rfind("}") + 1])["results"]
        found = [(str(one["expectedOutcome"]), one["metExpectation"], str(one["reasoning"])) for one in results]
    except (ValueError, KeyError, TypeError) as error:
        raise BadReply(f"no verdict that tau2 can read: {said[:200]!r}", "bad_verdict") from error
    if len(found) != count or not all(isinstance(met, bool) for _, met, _ in found):
        raise BadReply(f"a verdict on {len(found)} of {count} assertions: {said[:200]!r}", "bad_verdict")
    return _text(found)


def _text(results: Sequence[tuple[str, bool, str]]) -> str:
    names = ("expectedOutcome", "metExpectation", "reasoning")
    return json.dumps({"results": [dict(zip(names, result, strict=True)) for result in results]})
