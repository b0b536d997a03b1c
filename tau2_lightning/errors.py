"""The errors for users and operators. Everything else that is raised is a defect of this project."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class Tau2LightningError(Exception):
    """Base of every error this package raises on purpose."""


@dataclass(frozen=True)
class Violation:
    """One thing wrong with the configuration.

    ``key`` is the dotted config key, ``value`` what was given, ``problem`` what is wrong with it, and ``remedy`` what
    is allowed or how to mend it.
    """

    key: str
    value: object
    problem: str
    remedy: str

    def __str__(self) -> str:
        # An empty string: no value was given.
        given = "" if self.value == "" else f"={self.value!r}"
        return f"{self.key}{given}: {self.problem}. {self.remedy}"


class ConfigError(Tau2LightningError):
    """The configuration cannot run. Lists every violation; raised before anything heavy starts."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        self.violations = tuple(violations)
        count = len(self.violations)
        head = f"{count} problem{'s' if count != 1 else ''} in the configuration:"
        super().__init__("\n  - ".join([head, *map(str, self.violations)]))


class InfrastructureFault(Tau2LightningError):
    """An engine, proxy, user simulator or environment failed. Retried, then excluded and counted; never a reward.

    ``component`` names what failed (``engine``, ``proxy``, ``user``, ``environment``, ...), ``cause`` is a short
    stable word for counting (``timeout``, ``connection``, ``crash``, ...). ``again``: another attempt may succeed.
    """

    def __init__(self, component: str, cause: str, message: str = "", *, again: bool = True) -> None:
        self.component, self.cause, self.again = component, cause, again
        super().__init__(f"{component}: {cause}" + (f": {message}" if message else ""))

    @property
    def name(self) -> str:
        """``component:cause``, the name under which the fault is counted."""
        return f"{self.component}:{self.cause}"

    @staticmethod
    def of_code(code: str, message: str) -> InfrastructureFault:
        """The fault behind an error code of the proxy: ``engine_crash`` is ``engine:crash``, ``overloaded`` is
        ``proxy:overloaded``."""
        component, _, cause = code.partition("_")
        if component == "engine" and cause:
            return InfrastructureFault(component, cause, message)
        return InfrastructureFault("proxy", code, message)


class UserMisbehaved(InfrastructureFault):
    """The simulated user broke its rules, so the episode says nothing about the agent. ``cause`` is the kind of fault.

    ``again``: the episode is played again with another draw of the user; otherwise it is excluded at once.
    """

    def __init__(self, kind: str, evidence: str, *, again: bool) -> None:
        super().__init__("user", kind, evidence, again=again)


class DeadlineExceeded(InfrastructureFault):
    """A wait exceeded its deadline. Names the component that is stuck and the seconds waited."""

    def __init__(self, component: str, seconds: float, doing: str) -> None:
        self.seconds, self.doing = seconds, doing
        super().__init__(component, "timeout", f"no answer within {seconds:g} s while {doing}")


class WorkflowFault(InfrastructureFault):
    """An agent workflow of the user's raised, or returned no usable reward.

    The episode is excluded and counted as ``workflow:cause``, as with every fault. It is not played again: the same
    code would fail again, or, where the policy's answers made it fail, a second try would choose among samples.
    """

    def __init__(self, cause: str, message: str = "") -> None:
        super().__init__("workflow", cause, message, again=False)


class TooManyFaults(Tau2LightningError):
    """More episodes of a batch or a validation are excluded than ``rollout.max_fault_fraction`` allows. Stops the
    run."""


class NothingPlayed(Tau2LightningError):
    """A batch or a validation has no finished episode, or no token to train on. Stops the run: it has no number to
    show."""


class SessionError(Tau2LightningError):
    """A session of the proxy cannot do what was requested. ``code`` is a stable error code."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        super().__init__(message)


class ParityError(Tau2LightningError):
    """Engine and trainer disagree on log-probabilities: the engine's weights are not the trainer's weights."""


class ScoreDisagreement(Tau2LightningError):
    """The fast score of an episode and tau2's own differ, or an episode changed the shared records. Stops the run: its
    rewards cannot be trusted."""


class SharedStateChanged(Tau2LightningError):
    """An episode has changed the database that all episodes of its domain start from."""


class TrainingDiverged(Tau2LightningError):
    """Gradients of too many steps, or weights, are not finite. Stops the run; checkpoints hold finite weights only."""
