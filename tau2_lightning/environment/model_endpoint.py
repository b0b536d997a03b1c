"""A model of the environment that is asked over HTTP: the user's, the judge's."""

from __future__ import annotations

from dataclasses import dataclass, field


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
