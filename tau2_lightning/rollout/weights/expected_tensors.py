"""The tensors that an engine's model has, for engines that check nothing themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import structlog
from safetensors import safe_open

from tau2_lightning.rollout.engine.names import SGLANG
from tau2_lightning.rollout.engine.settings import EngineSettings

from .wire import Bucket

log = structlog.get_logger(__name__)


class ExpectedTensors:
    """Names and shapes of the tensors in the weight files that an engine was started from.

    A tensor of another shape ends an SGLang server, and it takes a tensor of an unknown name for loaded: it would
    answer that all is well, and serve a mixture of old and new weights.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    @classmethod
    def of(cls, settings: EngineSettings) -> ExpectedTensors | None:
        """The tensors of the model at ``settings.model_path``; None for engines that check weights themselves, and
        (with a warning) where there are no safetensors files."""
        if settings.backend != SGLANG:
            return None
        shapes: dict[str, tuple[int, ...]] = {}
        for path in Path(settings.model_path).glob("*.safetensors"):
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if not shapes:
            log.warning("new weights cannot be compared with the model's, and SGLang ends at a wrong one")
            return None
        return cls(shapes)

    def check(self, bucket: Bucket) -> None:
        """Raise ValueError when the engine's model has no such tensor, or one of another shape."""
        for name, tensor in bucket.items():
            shape = self._shapes.get(name)
            if shape is None:
                raise ValueError(f"the engine's model has no tensor {name}, which the trainer publishes")
            if shape != tuple(tensor.shape):
                found = f"the shape {tuple(tensor.shape)} in the trainer and {shape} in the engine's model"
                raise ValueError(f"tensor {name} has {found}")
