"""One tau2 episode, stepped from outside: tau2's orchestrator asks, the caller answers in OpenAI messages."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tau2_lightning.environment.brains import make_brain
from tau2_lightning.errors import ConfigError, InfrastructureFault
from tau2_lightning.trajectory import EpisodeOutcome

from . import tau2_api as api
from .agents import QueuedAgent, QueuedSoloAgent
from .blueprints import THINK, blueprint
from .made_up_ids import MadeUpIds
from .quiet import without_debug_lines
from .replies import Call, Reply, read_reply
from .scoring import fast_reward_info
from .settings import EnvironmentSettings, TaskRef
from .tasks import check_domain, get_task, scenario
from .users import QueuedUser, UserBrain

DONE = api.LLMSoloAgent.STOP_FUNCTION_NAME
TRANSFER = api.LLMSoloAgent.TRANSFER_TOOL_NAME


class _Orchestrator(api.Orchestrator):
    """tau2's own."""

    step = without_debug_lines(api.Orchestrator.step)


class Dialogue:
    """An episode of ``task`` under ``settings``. ``await start()``, then answer ``messages`` by ``reply`` until
    ``done``, then ask for the ``outcome``.

    Every mistake of the agent is an event of the episode; whatever else fails raises InfrastructureFault with the
    component ``environment`` or ``user``. Not thread-safe; many dialogues may run in one event loop.
    """

    def __init__(self, task: TaskRef, settings: EnvironmentSettings, seed: int = 0) -> None:
        if problems := check_domain(settings):
            raise ConfigError(problems)
        self.task, self.settings, self.seed = task, settings, seed
        self._ids = MadeUpIds(f"ids of {seed}")
        self._task = get_task(task)
        self._blueprint = blueprint(settings.domain, settings.solo_mode)
        self._messages: list[dict[str, Any]] = []
        self._mistakes: Counter[str] = Counter()
        self._actions: list[str] = []
        self._turns = 0
        self._initialized = self._finished = False
        self._started_at, self._clock = api.get_now(), time.perf_counter()
        self._aborted: str | None = None
        self._outcome: EpisodeOutcome | None = None
        with _guard("building the episode"):
            self._build()

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The OpenAI messages to answer now: the whole history. Between turns it only grows; never change its items."""
        return list(self._messages)

    @property
    def tools(self) -> list[dict[str, Any]]:
        """OpenAI schemas of the agent's tools: one object shared by all episodes of the domain and mode."""
        return self._blueprint.tool_schemas(self.settings.add_thinking_tool)

    @property
    def tool_choice(self) -> str:
        """What tau2 sends: a tool is ``required`` in solo mode, ``auto`` otherwise."""
        return "required" if self.settings.solo_mode else "auto"

    @property
    def done(self) -> bool:
        return self._finished

    @property
    def user_name(self) -> str:
        """Who plays the user; every score names it."""
        return self._brain.name if self._brain is not None else "none"

    async def start(self) -> None:
        """Bring the episode to the agent's first turn (or to its end, where the task's history already ends it)."""
        with _guard("starting the episode"):
            orchestrator = self._orchestrator
            initial = self._task.initial_state
            self._messages = self._opening()
            # Without a history tau2's solo mode asks for the agent's first message inside initialize().
            if not self.settings.solo_mode or (initial is not None and initial.message_history):
                self._initialize()
                self._messages += [_to_openai(message) for message in orchestrator.agent_state.messages]
        await self._advance()

    async def reply(self, message: Mapping[str, Any]) -> None:
        """Play the agent's turn: an OpenAI assistant message (``content``, ``tool_calls`` with JSON arguments)."""
        if self._finished:
            raise RuntimeError("the episode is over")
        reply = read_reply(message, self._turns)
        self._turns += 1
        self._mistakes.update(reply.mistakes)
        self._messages.append(reply.message)
        self._actions.extend(call.name for call in reply.calls)
        thoughts, calls = self._split_thoughts(reply)
        ending = self._fatal_mistake(reply)
        if ending is not None:
            self._mistakes[ending] += 1
            self._end_in_error(_to_tau2(reply.content, calls))
        elif calls or not thoughts:
            self._count_names(reply.calls)
            self._orchestrator.agent.queued = _to_tau2(reply.content, calls)
            with _guard("passing on the agent's message"):
                if self._initialized:
                    self._step()
                else:
                    self._initialize()
            await self._advance(thoughts)
        else:
            # tau2 would have counted the call and its result as a step each.
            self._orchestrator.step_count += 2
            self._messages += [_tool_result(call.id, "") for call in thoughts]
            self._check_limits()

    def abort(self, reason: str) -> None:
        """End the episode for a cause of the agent's that tau2 knows nothing of, e.g. ``context_overflow``.

        tau2 sees an agent error: reward 0. ``outcome().termination_reason`` is ``reason``.
        """
        if self._finished:
            raise RuntimeError("the episode is over")
        self._aborted = reason
        self._orchestrator.done = self._finished = True
        self._orchestrator.termination_reason = api.TerminationReason.AGENT_ERROR

    def outcome(self) -> EpisodeOutcome:
        """The scored episode. Raises RuntimeError before the end, InfrastructureFault when scoring fails."""
        if not self._finished:
            raise RuntimeError("the episode is still going on")
        if self._outcome is None:
            with _guard("scoring the episode"):
                self._outcome = self._score()
        return self._outcome

    # -- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        settings, task, plan = self.settings, self._task, self._blueprint
        environment = plan.environment()
        policy = plan.policy if settings.policy == "full" else ""
        self._brain: UserBrain | None = None
        if settings.solo_mode:
            agent = QueuedSoloAgent(list(plan.agent_tools), plan.stop_tool, policy, task)
            user = api.dummy_user(scenario(self.task), plan.user_tools_list)
        else:
            agent = QueuedAgent(list(plan.agent_tools), policy)
            tools = list(plan.user_tools) if plan.user_tools is not None else None
            self._brain = make_brain(settings.user, task, plan.user_tools, self.seed)
            user = QueuedUser(tools=tools, instructions=scenario(self.task), llm=self._brain.name, llm_args={})
        self._orchestrator = _Orchestrator(
            domain=settings.domain,
            agent=agent,
            user=user,
            environment=environment,
            task=task,
            max_steps=settings.max_steps,
            max_errors=settings.max_errors,
            seed=self.seed,
            solo_mode=settings.solo_mode,
        )

    def _opening(self) -> list[dict[str, Any]]:
        if self.settings.policy == "ticket":
            return [{"role": "user", "content": self._task.ticket or scenario(self.task)}]
        return [{"role": "system", "content": self._orchestrator.agent.system_prompt}]

    # -- stepping -----------------------------------------------------------------------------------------------------

    def _initialize(self) -> None:
        with self._ids:
            self._orchestrator.initialize()
        self._initialized, self._finished = True, self._orchestrator.done

    async def _advance(self, thoughts: tuple[Call, ...] = ()) -> None:
        """Step tau2 until the agent must speak or the episode ends; keep what the agent gets to see."""
        orchestrator = self._orchestrator
        while self._initialized and not self._finished and orchestrator.to_role != api.Role.AGENT:
            if orchestrator.to_role == api.Role.USER and self._brain is not None:
                user = orchestrator.user
                user.queued = await self._brain.answer(user, orchestrator.message, orchestrator.user_state)
            with _guard(f"passing on a message to the {orchestrator.to_role.value}"):
                self._step()
        if self._initialized and not self._finished:
            self._receive(orchestrator.message, thoughts)

    def _step(self) -> None:
        with self._ids:
            self._orchestrator.step()
        self._check_limits()

    def _check_limits(self) -> None:
        """The limits that tau2 checks in ``run``, in its order: never between a call and its result."""
        orchestrator, reasons = self._orchestrator, api.TerminationReason
        if orchestrator.to_role != api.Role.ENV:
            if orchestrator.step_count >= orchestrator.max_steps:
                orchestrator.done, orchestrator.termination_reason = True, reasons.MAX_STEPS
            if orchestrator.num_errors >= orchestrator.max_errors:
                orchestrator.done, orchestrator.termination_reason = True, reasons.TOO_MANY_ERRORS
        self._finished = orchestrator.done

    def _receive(self, message: Any, thoughts: tuple[Call, ...]) -> None:
        if isinstance(message, api.UserMessage):
            self._messages.append(_to_openai(message))
            return
        results = message.tool_messages if isinstance(message, api.MultiToolMessage) else [message]
        entries = [_to_openai(result) for result in results]
        if thoughts:
            # Results stand in the order of the calls; those to ``think`` never reached tau2.
            quiet = {call.id for call in thoughts}
            queue = iter(entries)
            calls = self._messages[-1]["tool_calls"]
            entries = [_tool_result(call["id"], "") if call["id"] in quiet else next(queue) for call in calls]
        self._messages += entries

    # -- the agent's mistakes -----------------------------------------------------------------------------------------

    def _split_thoughts(self, reply: Reply) -> tuple[tuple[Call, ...], tuple[Call, ...]]:
        """Calls to ``think``, which tau2's toolkits lack, and the calls that are for tau2."""
        if not self.settings.add_thinking_tool:
            return (), reply.calls
        thoughts = tuple(call for call in reply.calls if call.name == THINK)
        return thoughts, tuple(call for call in reply.calls if call.name != THINK)

    def _fatal_mistake(self, reply: Reply) -> str | None:
        """The kind of mistake that tau2's rules answer with AGENT_ERROR, or None."""
        has_text = bool(reply.content.strip())
        if not reply.calls:
            if not has_text:
                return "empty_reply"
            return "no_tool_call" if self.settings.solo_mode else None
        # tau2 would take the token for a stop, with calls outstanding that nothing ever answers.
        if self.settings.solo_mode and api.LLMSoloAgent.STOP_TOKEN in reply.content:
            return "stop_token_in_text"
        return None

    def _count_names(self, calls: tuple[Call, ...]) -> None:
        known = self._blueprint.tool_names
        extra = {THINK} if self.settings.add_thinking_tool else set()
        self._mistakes["unknown_tool"] += sum(call.name not in known and call.name not in extra for call in calls)
        if self.settings.solo_mode and len(calls) > 1 and any(call.name == DONE for call in calls):
            self._mistakes["done_beside_others"] += 1

    def _end_in_error(self, message: Any) -> None:
        orchestrator = self._orchestrator
        orchestrator.trajectory.append(message)
        orchestrator.done = self._finished = True
        orchestrator.termination_reason = api.TerminationReason.AGENT_ERROR

    # -- scoring ------------------------------------------------------------------------------------------------------

    def _score(self) -> EpisodeOutcome:
        orchestrator, task = self._orchestrator, self._task
        # In the order of events; tau2 sorts by wall clock, which a clock step would scramble.
        messages = orchestrator.trajectory
        for index, message in enumerate(messages):
            message.turn_idx = index
        run = api.SimulationRun(
            id=str(uuid.uuid4()),
            task_id=task.id,
            start_time=self._started_at,
            end_time=api.get_now(),
            duration=time.perf_counter() - self._clock,
            termination_reason=orchestrator.termination_reason,
            agent_cost=0.0,
            user_cost=0.0,
            messages=messages,
            seed=self.seed,
        )
        info = fast_reward_info(run, task, orchestrator.environment, self.settings.domain, self.settings.solo_mode)
        run.reward_info = info
        breakdown = {kind.value: value for kind, value in (info.reward_breakdown or {}).items()}
        results = [m for m in messages if isinstance(m, api.ToolMessage) and m.requestor == "assistant"]
        return EpisodeOutcome(
            task_id=task.id,
            reward=float(info.reward),
            termination_reason=self._aborted or orchestrator.termination_reason.value,
            turns=self._turns,
            tool_calls=len(self._actions),
            tool_errors=sum(message.error for message in results),
            transferred=TRANSFER in self._actions,
            transfer_expected=self.task.transfer_expected,
            user=self.user_name,
            mistakes={kind: count for kind, count in sorted(self._mistakes.items()) if count},
            reward_breakdown=breakdown,
            actions=tuple(self._actions),
            simulation=run.model_dump(mode="json"),
        )


def training_reward(outcome: EpisodeOutcome, settings: EnvironmentSettings) -> float:
    """What the trainer maximises: tau2's reward, less ``transfer_penalty`` for a transfer nobody asked for."""
    needless = outcome.transferred and not outcome.transfer_expected
    return outcome.reward - (settings.transfer_penalty if needless else 0.0)


@contextmanager
def _guard(doing: str) -> Iterator[None]:
    """Turn whatever fails inside into a fault of the environment."""
    try:
        yield
    except (InfrastructureFault, ConfigError):
        raise
    except Exception as error:
        raise InfrastructureFault("environment", type(error).__name__, f"{doing}: {error}") from error


def _to_tau2(content: str, calls: tuple[Call, ...]) -> Any:
    tau2_calls = [api.ToolCall(id=call.id, name=call.name, arguments=call.arguments) for call in calls]
    return api.AssistantMessage(role="assistant", content=content or None, tool_calls=tau2_calls or None, cost=0.0)


def _to_openai(message: Any) -> dict[str, Any]:
    """tau2's own conversion, without the ``name`` beside a call's function that OpenAI's schema does not know."""
    entry = dict(api.to_litellm_messages([message])[0])
    calls = entry.pop("tool_calls", None)
    if calls:
        entry["tool_calls"] = [{"id": c["id"], "type": "function", "function": c["function"]} for c in calls]
    return entry


def _tool_result(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "content": content, "tool_call_id": call_id}
