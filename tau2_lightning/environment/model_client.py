"""Requests to the other models of the environment, the user's and the judge's: retried, bounded, counted.

An endpoint that limits its rate is waited for: `AdaptiveLimit` holds all requests back for the time that it names, and
lets fewer through afterwards. Any other failure is tried again a few times. Every question has a deadline; at its end
it is an InfrastructureFault of the component that asked.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import structlog
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, wait_exponential_jitter

from tau2_lightning.errors import InfrastructureFault

from .adaptive_limit import AdaptiveLimit
from .model_endpoint import ModelEndpoint
from .model_faults import cause_of, worth_retrying
from .model_prices import cost_of
from .model_transport import send
from .model_watch import ModelUse, watch
from .patience import uncharged
from .retry_after import headers_of, is_refusal, retry_after_s, status_of

log = structlog.get_logger(__name__)
T = TypeVar("T")


class ModelClient:
    """Asks one endpoint from one event loop; get it by `client_for`, so that all questions share its limit."""

    def __init__(self, endpoint: ModelEndpoint) -> None:
        self.endpoint = endpoint
        self.limit = AdaptiveLimit(endpoint.max_concurrent, longest_wait_s=endpoint.deadline_s)
        self.use = ModelUse()
        self._trouble = ""  # why the newest request failed; empty after an answer
        self._asking = 0  # questions without an answer yet
        watch(self)

    @property
    def component(self) -> str:
        """The model's part, which faults name."""
        return self.endpoint.component

    async def ask(self, request: Callable[[int], Mapping[str, Any]], read: Callable[[Any], T]) -> T:
        """``read`` of the chat completion that answers ``request(attempt)`` (OpenAI's fields without the model).

        ``read`` raises BadReply for an answer that it cannot use. ``attempt`` counts from 0: give another seed to
        another attempt, since the same would repeat an unusable answer. Raises
        InfrastructureFault(component, cause): ``rate_limited``, ``timeout``, ``connection``, ``http_<status>``, a
        BadReply's cause, or the error's type.
        """
        endpoint, failures = self.endpoint, _Failures(self.endpoint.max_retries)
        retrying = AsyncRetrying(
            stop=failures.too_many, wait=failures.wait, retry=retry_if_exception(worth_retrying), reraise=True
        )
        self._asking += 1
        try:
            async with asyncio.timeout(endpoint.deadline_s) as limit:
                async for attempt in retrying:
                    with attempt:
                        number = attempt.retry_state.attempt_number - 1
                        return await self._try(request(number), read, failures, again=number > 0)
        except Exception as error:
            if limit.expired() and isinstance(error, TimeoutError):
                raise self._late(failures) from error
            raise InfrastructureFault(endpoint.component, cause_of(error), f"{endpoint.model}: {error}") from error
        finally:
            self._asking -= 1
        raise AssertionError("unreachable: tenacity returns or raises")

    async def _try(
        self, request: Mapping[str, Any], read: Callable[[Any], T], failures: _Failures, *, again: bool
    ) -> T:
        clock = asyncio.get_running_loop().time
        since = clock() if failures.since is None else failures.since
        with uncharged():
            taken_at = await self.limit.enter(again=again)
        try:
            self.use.waited_s += clock() - since
            self.use.requests += 1
            self.use.retries += again
            response = await send(self.endpoint, request)
            self._answered(response)
            return read(response)
        except Exception as error:
            failures.add(error, clock())
            self._trouble = str(status_of(error) or cause_of(error))
            if is_refusal(error):
                self._refused(error, taken_at)
            raise
        finally:
            self.limit.leave()

    def _late(self, failures: _Failures) -> InfrastructureFault:
        """The fault of a question whose deadline has come."""
        told, name = failures.newest, self.endpoint.model
        cause = cause_of(told) if told is not None else "rate_limited" if self.limit.refusing else "timeout"
        text = f"no usable answer from {name} within {self.endpoint.deadline_s:g} s" + (
            f"; the newest: {told}" if told else ""
        )
        return InfrastructureFault(self.component, cause, text)

    def _answered(self, response: Any) -> None:
        self._trouble = ""
        self.limit.answered()
        usage = getattr(response, "usage", None)
        if usage:
            self.use.prompt_tokens += usage.prompt_tokens or 0
            self.use.completion_tokens += usage.completion_tokens or 0
            cost = cost_of(self.endpoint.model, usage.prompt_tokens or 0, usage.completion_tokens or 0)
            if cost is not None:
                self.use.cost = (self.use.cost or 0.0) + cost

    def _refused(self, error: Exception, taken_at: float) -> None:
        self.use.refused += 1
        known = self.limit.closed_for
        wait = self.limit.refused(taken_at, retry_after_s(headers_of(error)))
        if wait > known + 1.0:
            log.warning(
                "a model of the environment limits its rate",
                component=self.component,
                status=status_of(error),
                retry_in=round(wait, 1),
                open_at_most=self.limit.limit,
            )

    def waits(self) -> str:
        """What is waited for, in words for the screen; empty when nothing is. May be called from any thread."""
        seconds, trouble, name = self.limit.closed_for, self._trouble, f"the {self.component} model"
        if seconds > 0.0 and self.limit.waiting:
            return f"waiting for {name}: {trouble or 'refused'}, retry in {seconds:.0f} s"
        return f"{name} fails: {trouble}" if trouble and self._asking else ""


class _Failures:
    """The failed tries of one question: when to give up, and how long to wait."""

    def __init__(self, most: int) -> None:
        self._most, self._count = most, 0
        self._backoff = wait_exponential_jitter(initial=0.2, max=10.0)
        self.newest: BaseException | None = None
        self.since: float | None = None

    def add(self, error: BaseException, now: float) -> None:
        self.newest, self.since = error, now
        self._count += not is_refusal(error)

    def too_many(self, _: RetryCallState) -> bool:
        return self._count > self._most

    def wait(self, state: RetryCallState) -> float:
        # A refused request waits at the door, with all others.
        if self.newest is not None and is_refusal(self.newest):
            return random.uniform(0.0, 0.05)
        return float(self._backoff(state))


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[ModelEndpoint, ModelClient]] = WeakKeyDictionary()


def client_for(endpoint: ModelEndpoint) -> ModelClient:
    """The client of ``endpoint`` in the running event loop: one for all who ask it, so that they share its limit."""
    clients = _clients.setdefault(asyncio.get_running_loop(), {})
    if endpoint not in clients:
        clients[endpoint] = ModelClient(endpoint)
    return clients[endpoint]
