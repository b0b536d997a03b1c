"""One tau2 episode, stepped from outside: tau2's orchestrator asks, the caller answers in OpenAI messages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tau2_lightning.errors import ConfigError, InfrastructureFault
from tau2_lightning.trajectory import EpisodeOutcome

from . import tau2_api as api
from .agents import QueuedAgent, QueuedSoloAgent
from .blueprints import THINK
from .brains import make_brain
from .conversions import to_openai, to_tau2, tool_result
from .judge import verdict_on
from .made_up_ids import MadeUpIds
from .mistakes import fatal_mistake, name_mistakes
from .outcomes import Record, score
from .replies import Call, Reply, read_reply
from .scoring import plan_of
from .settings import EnvironmentSettings, TaskRef
from .tasks import check_domain, scenario, scored_task
from .users import QueuedUser, UserBrain
from .whereabouts import ENVIRONMENT, USER, at

# Draws of one user differ in more than the tries of one message do.
SEEDS_APART = 1_000_003


class Dialogue:
    """An episode of ``task`` under ``settings``: ``await start()``, answer ``messages`` by ``reply`` until ``done``,
    read ``outcome()``.

    Every mistake of the agent is an event of the episode; any other failure raises InfrastructureFault with the
    component ``environment``, ``user`` or ``judge``. Not thread-safe; many dialogues may run in one event loop.
    ``user_draw``: the same episode with another draw of the user, where an earlier one broke its rules.
    """

    def __init__(self, task: TaskRef, settings: EnvironmentSettings, seed: int = 0, *, user_draw: int = 0) -> None:
        if problems := check_domain(settings):
            raise ConfigError(problems)
        self.task, self.settings, self.seed = task, settings, seed
        self._user_seed = seed + user_draw * SEEDS_APART
        self._ids = MadeUpIds(f"ids of {seed}")
        self._task = scored_task(task, settings)
        self._blueprint = plan_of(settings)
        self._verdict: str | None = None
        self._messages: list[dict[str, Any]] = []
        self._record = Record()
        self._initialized = self._finished = False
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
        """As in tau2: a tool call is ``required`` in solo mode, ``auto`` otherwise."""
        return "required" if self.settings.solo_mode else "auto"

    @property
    def done(self) -> bool:
        """Whether the episode is over."""
        return self._finished

    @property
    def user_name(self) -> str:
        """The user's name in scores: ``none``, ``scripted`` or a model's name."""
        return self._brain.name if self._brain is not None else "none"

    def opening(self) -> list[dict[str, Any]]:
        """The messages before the first turn of anybody: the system prompt, or the ticket in the place of a policy."""
        if self.settings.policy == "ticket":
            return [{"role": "user", "content": self._task.ticket or scenario(self.task)}]
        return [{"role": "system", "content": self._orchestrator.agent.system_prompt}]

    async def start(self) -> None:
        """Bring the episode to the agent's first turn, or to its end where the task's history contains it."""
        with _guard("starting the episode"):
            orchestrator = self._orchestrator
            initial = self._task.initial_state
            self._messages = self.opening()
            # Without a history tau2's solo mode asks for the agent's first message inside initialize().
            if not self.settings.solo_mode or (initial is not None and initial.message_history):
                self._initialize()
                self._messages += [to_openai(message) for message in orchestrator.agent_state.messages]
        await self._advance()

    async def reply(self, message: Mapping[str, Any]) -> None:
        """Play the agent's turn: an OpenAI assistant message (``content``, ``tool_calls`` with JSON arguments)."""
        if self._finished:
            raise RuntimeError("the episode is over")
        at(ENVIRONMENT)
        record = self._record
        reply = read_reply(message, record.turns)
        record.turns += 1
        record.mistakes.update(reply.mistakes)
        record.actions.extend(call.name for call in reply.calls)
        self._messages.append(reply.message)
        thoughts, calls = self._split_thoughts(reply)
        ending = fatal_mistake(reply, self.settings.solo_mode)
        if ending is not None:
            record.mistakes[ending] += 1
            self._end_in_error(to_tau2(reply.content, calls, reply.thoughts))
        elif calls or not thoughts:
            record.mistakes.update(name_mistakes(reply.calls, self._blueprint.tool_names, self.settings))
            self._orchestrator.agent.queued = to_tau2(reply.content, calls, reply.thoughts)
            with _guard("passing on the agent's message"):
                if self._initialized:
                    self._step()
                else:
                    self._initialize()
            await self._advance(thoughts)
        else:
            # Thoughts only: tau2 would have counted the call and its result as one step each.
            self._orchestrator.step_count += 2
            self._messages += [tool_result(call.id, "") for call in thoughts]
            self._check_limits()

    def abort(self, reason: str) -> None:
        """End the episode for a cause on the agent's side that tau2 does not know, e.g. ``context_overflow``.

        tau2 sees an agent error, or a full context where it has a word for that: reward 0.
        ``outcome().termination_reason`` is ``reason``.
        """
        if self._finished:
            raise RuntimeError("the episode is over")
        self._record.aborted = reason
        self._orchestrator.done = self._finished = True
        self._orchestrator.termination_reason = api.abort_reason(reason)

    def outcome(self) -> EpisodeOutcome:
        """The scored episode. Raises RuntimeError before the end, InfrastructureFault when scoring fails."""
        if not self._finished:
            raise RuntimeError("the episode is still going on")
        if self._outcome is None:
            with _guard("scoring the episode"):
                self._outcome = score(
                    self._orchestrator,
                    self._record,
                    self.task,
                    self.settings,
                    seed=self.seed,
                    user=self.user_name,
                    verdict=self._verdict,
                )
        return self._outcome

    # -- building -----------------------------------------------------------------------------------------------------

    def _build(self) -> None:
        settings, task, plan = self.settings, self._task, self._blueprint
        environment = plan.environment(task)
        policy = plan.policy_for(task) if settings.policy == "full" else ""
        self._brain: UserBrain | None = None
        if settings.solo_mode:
            agent = QueuedSoloAgent(list(plan.agent_tools), plan.stop_tool, policy, task)
            user = api.dummy_user(scenario(self.task), plan.user_tools_list)
        else:
            agent = QueuedAgent(list(plan.agent_tools), policy)
            own = api.users_tools(task, plan.user_tools)
            tools = list(own) if own is not None else None
            self._brain = make_brain(settings.user, task, own, self._user_seed)
            user = QueuedUser(tools=tools, instructions=scenario(self.task), llm=self._brain.name, llm_args={})
        # tau2's step formats every message for a debug line that its log then discards. This takes a fifth of an
        # episode in retail, which is 260 times as fast as stock tau2 without these lines, and 211 times with them. The
        # aim is 200.
        self._orchestrator = api.Orchestrator(
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

    # -- stepping -----------------------------------------------------------------------------------------------------

    def _initialize(self) -> None:
        with self._ids:
            self._orchestrator.initialize()
        self._initialized, self._finished = True, self._orchestrator.done

    async def _advance(self, thoughts: tuple[Call, ...] = ()) -> None:
        """Step tau2 until it is the agent's turn or the episode ends; append the messages that the agent sees."""
        orchestrator = self._orchestrator
        while self._initialized and not self._finished and orchestrator.to_role != api.Role.AGENT:
            if orchestrator.to_role == api.Role.USER and self._brain is not None:
                user = orchestrator.user
                at(USER)
                with self._record.spent(by_user=True):
                    user.queued = await self._brain.answer(user, orchestrator.message, orchestrator.user_state)
                at(ENVIRONMENT)
            doing = f"passing on a message to the {orchestrator.to_role.value}"
            with _guard(doing), self._record.spent(by_user=False):
                self._step()
        if self._initialized and not self._finished:
            self._receive(orchestrator.message, thoughts)
        elif self._finished:
            with _guard("judging the episode"):
                self._verdict = await verdict_on(orchestrator, self.settings, self.seed)

    def _step(self) -> None:
        with self._ids:
            self._orchestrator.step()
        self._check_limits()

    def _check_limits(self) -> None:
        """Apply the limits that tau2 checks in ``run``, in the same order, but never between a call and its result."""
        orchestrator, reasons = self._orchestrator, api.TerminationReason
        if orchestrator.to_role != api.Role.ENV:
            if orchestrator.step_count >= orchestrator.max_steps:
                orchestrator.done, orchestrator.termination_reason = True, reasons.MAX_STEPS
            if orchestrator.num_errors >= orchestrator.max_errors:
                orchestrator.done, orchestrator.termination_reason = True, reasons.TOO_MANY_ERRORS
        self._finished = orchestrator.done

    def _receive(self, message: Any, thoughts: tuple[Call, ...]) -> None:
        if isinstance(message, api.UserMessage):
            self._messages.append(to_openai(message))
            return
        results = message.tool_messages if isinstance(message, api.MultiToolMessage) else [message]
        entries = [to_openai(result) for result in results]
        if thoughts:
            # Results have the order of the calls; those to ``think`` never reached tau2.
            quiet = {call.id for call in thoughts}
            queue = iter(entries)
            calls = self._messages[-1]["tool_calls"]
            entries = [tool_result(call["id"], "") if call["id"] in quiet else next(queue) for call in calls]
        self._messages += entries

    def _split_thoughts(self, reply: Reply) -> tuple[tuple[Call, ...], tuple[Call, ...]]:
        """Calls to ``think``, which is not in tau2's toolkits, and the calls for tau2."""
        if not self.settings.add_thinking_tool:
            return (), reply.calls
        thoughts = tuple(call for call in reply.calls if call.name == THINK)
        return thoughts, tuple(call for call in reply.calls if call.name != THINK)

    def _end_in_error(self, message: Any) -> None:
        orchestrator = self._orchestrator
        orchestrator.trajectory.append(message)
        orchestrator.done = self._finished = True
        orchestrator.termination_reason = api.TerminationReason.AGENT_ERROR


@contextmanager
def _guard(doing: str) -> Iterator[None]:
    """Turn any failure inside into a fault of the environment."""
    try:
        yield
    except (InfrastructureFault, ConfigError):
        raise
    except Exception as error:
        raise InfrastructureFault("environment", type(error).__name__, f"{doing}: {error}") from error
