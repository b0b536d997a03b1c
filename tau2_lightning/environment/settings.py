"""Settings of episodes and references to tasks as plain values, without importing tau2."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tau2_lightning.config.environment import EnvironmentConfig
from tau2_lightning.errors import Violation

from .user_thinking import ReasoningParser

UserKind = Literal["scripted", "llm", "none"]
UserFaultRule = Literal["keep", "exclude", "retry"]
RewardBasis = Literal["DB", "ENV_ASSERTION", "NL_ASSERTION", "ACTION", "COMMUNICATE"]
PolicyText = Literal["full", "none", "ticket"]
#: As in tau2, for its user simulator.
USER_ARGUMENTS: Mapping[str, Any] = {"temperature": 0.0}


@dataclass(frozen=True)
class UserSettings:
    """The user: ``none`` in solo mode, ``scripted`` without a model, ``llm`` for tau2's user simulator.

    ``llm`` is the model's name. It is called at ``base_url``, an OpenAI-compatible server (``/v1`` included); without
    ``base_url`` litellm finds the provider by the name. ``llm_args`` are sampling arguments of the chat completion
    call. A call may take ``timeout_s`` seconds and is tried ``1 + max_retries`` times; waits for a rate limit are no
    tries, and end with all else after ``deadline_s``. At most ``max_concurrent`` calls are open. ``reasoning_parser``
    says what is split off as thoughts (`user_thinking.split_thoughts`).
    """

    kind: UserKind = "none"
    llm: str = ""
    base_url: str = ""
    api_key: str = ""
    llm_args: Mapping[str, Any] = field(default_factory=dict)
    max_retries: int = 3
    timeout_s: float = 120.0
    deadline_s: float = 300.0
    max_concurrent: int = 128
    reasoning_parser: ReasoningParser | None = "auto"

    @property
    def name(self) -> str:
        """The user's name in scores: ``none``, ``scripted`` or the model's name."""
        return self.llm if self.kind == "llm" else self.kind


@dataclass(frozen=True)
class JudgeSettings:
    """The language model that decides on natural-language assertions; without ``llm`` there is none.

    The other fields are as in `UserSettings`.
    """

    llm: str = ""
    base_url: str = ""
    api_key: str = ""
    llm_args: Mapping[str, Any] = field(default_factory=dict)
    max_retries: int = 3
    timeout_s: float = 120.0
    deadline_s: float = 300.0
    max_concurrent: int = 64


@dataclass(frozen=True)
class Retrieval:
    """How the agent of a domain with a knowledge base finds documents: tau2's name of the configuration, and options.

    Without ``config`` nothing is chosen; only domains without a knowledge base can be played then.
    """

    config: str = ""
    options: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class EnvironmentSettings:
    """How episodes of one domain are played. Limits count as in tau2: a step is one message passed on.

    ``policy``: ``full`` is tau2's own prompt unchanged, ``none`` the same prompt with an empty policy, ``ticket`` (solo
    only) one user message that holds the ticket and nothing else. ``add_thinking_tool`` offers a ``think`` tool that
    changes nothing and leaves no trace in tau2's trajectory. ``transfer_penalty`` is taken from the training reward
    (never from the score) of an episode that transfers to a human when its task asks for none. ``user_faults``: what
    becomes of an episode in which the user breaks its rules (`user_faults.find_user_faults`).

    ``reward_basis`` replaces the reward basis of every task; with none given each keeps its own. ``judge`` decides on
    NL assertions where they are in the basis; ``unjudged`` leaves them out of every basis. ``retrieval`` is for domains
    with a knowledge base.
    """

    domain: str
    max_steps: int = 200
    max_errors: int = 10
    solo_mode: bool = False
    policy: PolicyText = "full"
    add_thinking_tool: bool = False
    user: UserSettings = field(default_factory=UserSettings)
    transfer_penalty: float = 0.0
    user_faults: UserFaultRule = "keep"
    retrieval: Retrieval = Retrieval()
    judge: JudgeSettings = field(default_factory=JudgeSettings)
    reward_basis: tuple[RewardBasis, ...] = ()
    unjudged: bool = False

    def violations(self, prefix: str = "econfig") -> list[Violation]:
        """Settings that cannot run, found without tau2 (see ``check_domain`` for the rest)."""
        found = []

        def complain(key: str, value: object, problem: str, remedy: str) -> None:
            found.append(Violation(f"{prefix}.{key}", value, problem, remedy))

        if self.max_steps < 1:
            complain("max_steps", self.max_steps, "an episode needs at least one step", "Use a positive number")
        if self.max_errors < 1:
            complain("max_errors", self.max_errors, "no episode could start", "Use a positive number")
        if self.policy not in ("full", "none", "ticket"):
            complain("policy", self.policy, "unknown policy text", "Use full, none or ticket")
        if self.policy == "ticket" and not self.solo_mode:
            complain("policy", "ticket", "tickets exist in solo mode only", "Set solo_mode=true or policy=full")
        if self.transfer_penalty < 0:
            complain("transfer_penalty", self.transfer_penalty, "would reward transfers", "Use 0 or a positive number")
        if self.user_faults not in ("keep", "exclude", "retry"):
            complain("user_faults", self.user_faults, "unknown rule", "Use keep, exclude or retry")
        if self.user.kind not in ("scripted", "llm", "none"):
            complain("user", self.user.kind, "unknown kind of user", "Use scripted, llm or none")
        elif self.solo_mode and self.user.kind != "none":
            complain("user", self.user.kind, "solo mode has no user", "Use user=none or solo_mode=false")
        elif not self.solo_mode and self.user.kind == "none":
            complain("user", "none", "a dialogue needs a user", "Use user=scripted, user=llm or solo_mode=true")
        if self.user.kind == "llm" and not self.user.llm:
            complain("user_llm", "", "no model is named for the user", "Name the model, or use user=scripted")
        if self.judge.base_url and not self.judge.llm:
            complain(
                "judge_llm", "", "no model is named for the judge", "Name the model that judge_llm_base_url serves"
            )
        return found


@dataclass(frozen=True)
class TaskRef:
    """One task of one split. ``transfer_expected``: its gold solution transfers to a human. ``stratum`` groups tasks
    with the same opening (in telecom: the same ticket), for stratified sampling.
    """

    domain: str
    split: str
    task_id: str
    transfer_expected: bool
    stratum: str


@dataclass(frozen=True)
class DomainInfo:
    """A domain as tau2 provides it. ``splits`` are sizes by name; ``solo_tasks`` counts the tasks that can be played
    solo; ``tools`` are the names of the agent's tools (solo tools where the domain has solo mode).
    """

    name: str
    splits: Mapping[str, int]
    has_solo: bool
    solo_tasks: int
    tools: tuple[str, ...]


def environment_settings(e: EnvironmentConfig) -> EnvironmentSettings:
    """The environment's settings of a checked configuration's section ``econfig``."""
    kind: Literal["scripted", "llm", "none"] = "none" if e.solo_mode else (e.user or "none")
    user = UserSettings(
        kind=kind,
        llm=(e.user_llm or Path(e.user_engine.path or "user").name) if kind == "llm" else "",
        base_url=e.user_llm_base_url or "",
        api_key=e.user_llm_api_key or "",
        llm_args=USER_ARGUMENTS if e.user_llm_args is None and kind == "llm" else (e.user_llm_args or {}),
        deadline_s=e.user_deadline,
        timeout_s=min(UserSettings.timeout_s, e.user_deadline),
        max_concurrent=e.user_max_concurrency,
        reasoning_parser=e.user_reasoning_parser,
    )
    return EnvironmentSettings(
        domain=e.domain,
        max_steps=e.max_steps,
        max_errors=e.max_errors,
        solo_mode=bool(e.solo_mode),
        policy=e.policy or "full",
        add_thinking_tool=e.add_thinking_tool,
        user=user,
        transfer_penalty=e.transfer_penalty,
        user_faults=e.user_faults,
        retrieval=Retrieval(e.retrieval_config or "", tuple(sorted((e.retrieval_config_kwargs or {}).items()))),
        judge=JudgeSettings(
            llm=e.judge_llm or "",
            base_url=e.judge_llm_base_url or "",
            api_key=e.judge_llm_api_key or "",
            llm_args=e.judge_llm_args or {},
        ),
        reward_basis=tuple(e.reward_basis or ()),
    )
