"""The built-in agent workflow: one tau2 episode, played by the policy behind a PolicyClient."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tau2_lightning.environment import Dialogue, ScoreMismatch, TaskRef, cross_check, training_reward
from tau2_lightning.environment.whereabouts import GENERATE, at
from tau2_lightning.errors import InfrastructureFault, ScoreDisagreement, SharedStateChanged

from .client import PolicyClient, RequestRejected
from .seeds import derived_seed

if TYPE_CHECKING:
    from tau2_lightning.environment import EnvironmentSettings
    from tau2_lightning.trajectory import EpisodeOutcome

# The proxy's error codes that mean: the agent's context is full; the infrastructure has not failed.
_AGENT_LIMITS = {"context_length_exceeded": "context_length_exceeded"}


@dataclass(frozen=True)
class Tau2Workflow:
    """Plays one tau2 episode as the agent.

    ``sampling`` are fields of an OpenAI chat completion request (temperature, top_p, ...). With ``seeded``, every turn
    is sampled with a seed of its own that follows from the episode's. A share ``official_check`` of the episodes is
    scored again by tau2's own evaluator; on a mismatch the episode is written to ``evidence`` and ScoreDisagreement
    stops the run. ``run`` returns the training reward and the EpisodeOutcome with tau2's own reward; it raises
    InfrastructureFault when the engine, the proxy, the user simulator or the environment failed, never a reward
    instead.
    """

    settings: EnvironmentSettings
    sampling: Mapping[str, Any] = field(default_factory=dict)
    official_check: float = 0.0
    evidence: Path | None = None
    model: str = "policy"
    seeded: bool = True

    async def run(self, data: Mapping[str, Any], *, client: PolicyClient, **_: Any) -> dict[str, Any]:
        """Play ``data["task"]`` with ``data["seed"]``; returns ``{"reward": float, "outcome": EpisodeOutcome}``."""
        dialogue = Dialogue(data["task"], self.settings, seed=data.get("seed", 0), user_draw=data.get("user_draw", 0))
        await dialogue.start()
        answered = False
        while not dialogue.done:
            try:
                message = await self._complete(client, dialogue, data.get("sampling") or {})
            except RequestRejected as error:
                limit = _AGENT_LIMITS.get(error.code)
                if limit is None:
                    raise InfrastructureFault("proxy", "rejected", str(error)) from error
                if not answered:  # the policy has not said a word yet
                    raise InfrastructureFault("episode", "prompt_too_long", str(error), again=False) from error
                dialogue.abort(limit)
                break
            answered = True
            await dialogue.reply(message)
        outcome = dialogue.outcome()
        if random.Random(data.get("seed", 0)).random() < self.official_check:
            await asyncio.to_thread(self._check, outcome, data["task"])
        return {"reward": training_reward(outcome, self.settings), "outcome": outcome}

    def _check(self, outcome: EpisodeOutcome, task: TaskRef) -> None:
        try:
            cross_check(outcome.simulation, task, self.settings)
        except (ScoreMismatch, SharedStateChanged) as error:
            written = None
            if self.evidence is not None:
                self.evidence.mkdir(parents=True, exist_ok=True)
                written = self.evidence / f"score_mismatch_{sha256(outcome.task_id.encode()).hexdigest()[:12]}.json"
                written.write_text(json.dumps(outcome.simulation, default=str, indent=2))
            raise ScoreDisagreement(f"{error}; episode written to {written}") from error

    async def _complete(self, client: PolicyClient, dialogue: Dialogue, sampling: Mapping[str, Any]) -> dict[str, Any]:
        messages = dialogue.messages
        seed = {"seed": derived_seed(dialogue.seed, len(messages))} if self.seeded else {}
        at(GENERATE)  # the session holds the tool schemas
        return await client.complete({"model": self.model, "messages": messages, **seed, **self.sampling, **sampling})
