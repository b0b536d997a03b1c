"""A service without an engine, during whose work signals come at a given place of the third batch."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import pytest

from tau2_lightning.module import GRPOModule
from tests.fake_service import FakeService, group


class Interrupted(FakeService):
    """Calls ``at_place`` at ``place``: start, rollout, step, sync or validate."""

    def __init__(self, place: str, at_place: Callable[[], None]) -> None:
        super().__init__([group(0, [1.0, 0.0, 0.0, 1.0])], [group(1, [0.0, 1.0, 0.0, 1.0])])
        self.place, self.at_place = place, at_place

    def here(self, place: str, when: bool) -> None:
        if place == self.place and when:
            self.at_place()

    def start(self) -> None:
        super().start()
        self.here("start", True)

    def collect(self, tasks: Any, plan: Any) -> Any:
        collection = super().collect(tasks, plan)
        self.here("rollout", len(self.published) == 2)
        return collection

    def publish(self, version: int, buckets: Any) -> Any:
        self.here("sync", version == 3)
        return super().publish(version, buckets)

    def evaluate(self, *args: Any, **options: Any) -> Any:
        self.here("validate", len(self.published) == 3)
        return super().evaluate(*args, **options)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Take the place of the engine, and of the loss."""

        def loss(module: GRPOModule, outputs: Any, microbatch: Any) -> Any:
            self.here("step", module.weights_version == 2)
            return module.algorithm.loss(outputs.logprobs, outputs.entropy, microbatch)

        patch.setattr(GRPOModule, "_loss", loss)
        patch.setattr("tau2_lightning.run.policy.check_prompts", lambda *_: None)
        patch.setattr("tau2_lightning.rank_zero.RolloutService", lambda *_, **__: self)


def signalled(number: int, stays: float) -> Callable[[], None]:
    """Send this process a signal, then go on for ``stays`` seconds."""

    def send() -> None:
        os.kill(os.getpid(), number)
        ends = time.monotonic() + stays
        while time.monotonic() < ends:
            time.sleep(0.02)

    return send
