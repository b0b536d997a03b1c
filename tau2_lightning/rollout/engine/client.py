"""What one engine server offers to the rest of the program. `vllm_client` has vLLM's form, `sglang.client` SGLang's."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path
from typing import Literal

from tau2_lightning.errors import InfrastructureFault

from .connection import Connection
from .generation import EngineRejected, Generation, SamplingParams, Scores
from .in_vllm.names import CPU_SECONDS
from .wire import decoded

#: What happens to running requests while weights change. ``wait``: they end on the old weights first; ``keep``: they
#: stop, and continue with the new weights; ``abort``: they end with what they have.
PauseMode = Literal["wait", "keep", "abort"]


class EngineClient(Connection, ABC):
    """Client of one server: token ids in, token ids out, and what controls the server. Errors as in `Connection`.

    ``model`` is the name of the LoRA adapter that requests are sent to, None for the model itself; ``adapter`` is the
    adapter that the server has loaded, served or not.
    """

    def __init__(self, url: str, *, api_key: str = "", name: str = "engine") -> None:
        super().__init__(url, api_key=api_key, name=name)
        self.model: str | None = None
        self.adapter: str | None = None

    # --------------------------------------------------------------------------------------------------- requests

    @abstractmethod
    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, within: float | None = None
    ) -> Generation:
        """Sample one continuation. Cancelling closes the connection, and the server then aborts the request.

        If the server can do so (`ends_in_time`), it ends the request after ``within`` seconds and returns the tokens
        sampled so far.
        """

    @abstractmethod
    def ends_in_time(self, sampling: SamplingParams) -> bool:
        """Whether the server ends such a request at a deadline."""

    @abstractmethod
    def stream(self, token_ids: Sequence[int], sampling: SamplingParams) -> AsyncIterator[Generation]:
        """Sample one continuation in chunks. Weight versions come with the last one, in ``stream_versions``."""

    @abstractmethod
    async def score(self, token_ids: Sequence[int]) -> Scores:
        """Log-probabilities (nats, temperature 1) of tokens 1..T-1 given those before, and the version they are of."""

    # ------------------------------------------------------------------------------------------------------ state

    @abstractmethod
    async def healthy(self, seconds: float = 5.0) -> bool:
        """Whether the API server answers within ``seconds``."""

    @abstractmethod
    async def responds(self, seconds: float) -> bool:
        """Whether the engine core answers within ``seconds``, however long the queue of its requests is.

        The core answers between two steps; `healthy` is answered by the API server, also when the core hangs.
        """

    async def cpu_seconds(self, seconds: float) -> float | None:
        """Processor time (seconds) that the engine core and its workers have used since they started.

        None when the server does not answer within ``seconds``, or was started without our extension.
        """
        try:
            async with asyncio.timeout(seconds), self.request("GET", CPU_SECONDS) as response:
                return float(decoded(await response.read(), self.name)["cpu_seconds"])
        except (InfrastructureFault, EngineRejected, TimeoutError, KeyError):
            return None

    @abstractmethod
    async def served_length(self) -> int:
        """Longest prompt plus completion, in tokens, that the server takes."""

    @abstractmethod
    async def world_size(self) -> int:
        """Number of workers (devices) behind this server."""

    # ---------------------------------------------------------------------------------------------------- weights

    @abstractmethod
    async def pause(self, mode: PauseMode) -> None:
        """Stop computing; returns when nothing is computed any more."""

    @abstractmethod
    async def resume(self) -> None:
        """Go on after `pause`."""

    @abstractmethod
    async def begin_update(self) -> None:
        """Prepare the server for new weights."""

    @abstractmethod
    async def load_files(self, files: Iterable[str | Path]) -> None:
        """Load safetensors files of full tensors under Hugging Face names, after `begin_update`."""

    @abstractmethod
    async def finish_update(self, version: int) -> None:
        """All weights are loaded; they are ``version``."""

    @abstractmethod
    async def set_version(self, version: int) -> None:
        """From now on, sampled tokens are of ``version``."""

    @abstractmethod
    async def reset_prefix_cache(self) -> None:
        """Drop cached keys and values; running requests recompute theirs. Old ones would give wrong log-probs.

        Raises InfrastructureFault when the engine reports that it could not.
        """

    @abstractmethod
    async def load_adapter(self, version: int, folder: Path) -> None:
        """Load a LoRA adapter in place of the previous one, and send the following requests to it."""
