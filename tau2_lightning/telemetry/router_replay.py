"""Router replay in each batch: its share, one warning where experts are missing, a fault for wrong ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tau2_lightning.batch.batch import Batch
from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.policy.loading import load_model_config
from tau2_lightning.strategy.families.registry import family_of

from .step_metrics import router_metrics
from .warned import warn

KEY = "rollout.return_routed_experts"
FEW = 0.9  # below this share of recorded positions the warning is given


class ReplayWatch:
    """Looks at the batches of a run with the model at ``policy``, on rank 0."""

    def __init__(self, policy: Path) -> None:
        self._policy, self._warned = policy, False
        self._shape: tuple[int, int] | None = None

    def look(self, batch: Batch) -> dict[str, float]:
        """The metrics of ``batch``. Prints one warning in a run if experts are missing.

        Raises InfrastructureFault when they are of a model with other layers or another number of experts per token.
        """
        self._check(batch)
        metrics = router_metrics(batch)
        share = metrics["router/replayed"]
        if share < FEW and not self._warned:
            self._warned = True
            what = "no experts" if share == 0 else f"the experts of {share:.0%} of the positions only"
            warn(
                f"router replay: the engine returned {what}; elsewhere the trainer's routers choose "
                f"themselves, and log-probs of engine and trainer differ more (mismatch_kl). Start engines of your own "
                f"with vLLM's --enable-return-routed-experts, or set {KEY}=false. This warning comes once"
            )
        return metrics

    def _check(self, batch: Batch) -> None:
        for row in batch.rows:
            for segment in row.leaf.path():
                if segment.experts is not None and segment.experts.shape[1:] != self._expected:
                    layers, used = segment.experts.shape[1:]
                    text = (
                        f"it returned experts of {layers} layers, {used} for a token, and the policy has "
                        f"{self._expected[0]} layers, {self._expected[1]} for a token: it serves another model, or "
                        f"reports them otherwise. {KEY}=false trains without them"
                    )
                    raise InfrastructureFault("engine", "wrong experts", text, again=False)

    @property
    def _expected(self) -> tuple[int, int]:
        """Layers, and experts for a token."""
        if self._shape is None:
            config: Any = load_model_config(self._policy)
            family = family_of(config)
            router = family.experts.router if family is not None and family.experts is not None else None
            assert router is not None, "experts are recorded of such families only"
            self._shape = (config.num_hidden_layers, router.used(config))
        return self._shape
