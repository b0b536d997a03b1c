"""A model of the environment that is asked over HTTP: the user's, the judge's."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


class AskedModel(Protocol):
    """Settings of a model that is asked over HTTP; see `ModelEndpoint`."""

    @property
    def llm(self) -> str: ...
    @property
    def base_url(self) -> str: ...
    @property
    def api_key(self) -> str: ...
    @property
    def timeout_s(self) -> float: ...
    @property
    def deadline_s(self) -> float: ...
    @property
    def max_retries(self) -> int: ...
    @property
    def max_concurrent(self) -> int: ...


@dataclass(frozen=True)
class ModelEndpoint:
    """A model, and how it is asked.

    ``component`` names it in faults (``user``, ``judge``). ``model`` is called at ``base_url``, an OpenAI-compatible
    server (``/v1`` included); without ``base_url`` litellm finds the provider by the name. One HTTP request may take
    ``timeout_s`` seconds, one question with all its tries and waits ``deadline_s``. A question whose request failed is
    tried ``max_retries`` times more; refusals (429) do not count as failures. At most ``max_concurrent`` requests are
    open at once.
    """

    component: str
    model: str
    base_url: str = ""
    api_key: str = field(default="", repr=False)
    timeout_s: float = 120.0
    deadline_s: float = 300.0
    max_retries: int = 3
    max_concurrent: int = 64

    @classmethod
    def of(cls, component: str, model: AskedModel) -> ModelEndpoint:
        """The endpoint of a configured model."""
        return cls(
            component,
            model.llm,
            model.base_url,
            model.api_key,
            timeout_s=model.timeout_s,
            deadline_s=model.deadline_s,
            max_retries=model.max_retries,
            max_concurrent=model.max_concurrent,
        )
