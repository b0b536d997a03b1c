"""vLLM's form of `EngineClient`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from pathlib import Path

import structlog

from tau2_lightning.errors import InfrastructureFault

from .client import EngineClient, PauseMode
from .generation import EngineRejected, Generation, SamplingParams, Scores
from .in_vllm.names import DEADLINE_HEADER, GENERATE, SEEDS_HEADER
from .wire import UNVERSIONED, decoded, parse_chunk, parse_generation, parse_scores, request_body, score_body

log = structlog.get_logger(__name__)

#: A part of vLLM's answer to a second begin of an update.
UNFINISHED = "a weight update is already active"


class VLLMClient(EngineClient):
    """Client of a vLLM server.

    ``forward_seed`` passes the seeds of requests on: a CPU server without our extension crashes on a seed with a long
    prompt.
    """

    def __init__(self, url: str, *, api_key: str = "", name: str = "engine", forward_seed: bool = False) -> None:
        super().__init__(url, api_key=api_key, name=name)
        self.forward_seed = forward_seed

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, within: float | None = None
    ) -> Generation:
        body = request_body(token_ids, sampling, model=self.model, seeds=self.forward_seed)
        headers = {} if within is None else {DEADLINE_HEADER: f"{within:.3f}"}
        return parse_generation(await self.post(GENERATE, body, headers=headers), sampling)

    def ends_in_time(self, sampling: SamplingParams) -> bool:
        """Only our extension ends requests at a deadline, and only plain ones."""
        plain = not (sampling.stop or sampling.structured or sampling.logit_bias or sampling.logprobs)
        return self.forward_seed and plain and not self.model and not sampling.penalised

    def stream(self, token_ids: Sequence[int], sampling: SamplingParams) -> AsyncIterator[Generation]:
        """One chunk for each of vLLM's server-sent events.

        vLLM reports weight versions in the last event only: earlier chunks carry -1, and ``stream_versions`` of the
        last chunk holds the versions of every token of the stream.
        """
        body = request_body(token_ids, sampling, model=self.model, seeds=self.forward_seed, stream=True)
        return self.chunks(
            GENERATE, body, lambda event: (parse_chunk(choice, sampling) for choice in event.get("choices", ()))
        )

    async def score(self, token_ids: Sequence[int]) -> Scores:
        if len(token_ids) < 2:
            return Scores([], None)
        return parse_scores(await self.post(GENERATE, score_body(token_ids, self.model)), token_ids, self.name)

    async def healthy(self, seconds: float = 5.0) -> bool:
        return await self.answers("/health", seconds)

    async def responds(self, seconds: float) -> bool:
        """True for a vLLM without this route (``VLLM_SERVER_DEV_MODE`` is not set), where a hang cannot be noticed."""
        try:
            return await self.answers("/is_paused", seconds)
        except EngineRejected:
            return True

    async def served_length(self) -> int:
        """``max_model_len`` of the served model. Also notes whether the server has our extension and accepts seeds."""
        async with self.request("GET", "/v1/models") as response:
            answer = decoded(await response.read(), self.name)
            self.forward_seed = self.forward_seed or SEEDS_HEADER in response.headers
        return int(answer["data"][0]["max_model_len"])

    async def world_size(self) -> int:
        return int((await self.get("/get_world_size"))["world_size"])

    async def pause(self, mode: PauseMode) -> None:
        await self.control("/pause", mode=mode)

    async def resume(self) -> None:
        await self.control("/resume")

    async def begin_update(self) -> None:
        try:
            await self.control("/start_weight_update")
        except InfrastructureFault as fault:
            if UNFINISHED not in str(fault):
                raise
            # A trainer was killed in the middle of its update, and this server outlives it.
            log.warning("ending an update that another process began", engine=self.name)
            await self.control("/finish_weight_update", {"weight_version": UNVERSIONED})
            await self.control("/start_weight_update")

    async def load_files(self, files: Iterable[str | Path]) -> None:
        for path in files:
            await self.control("/update_weights", {"update_info": {"path": str(path)}})

    async def finish_update(self, version: int) -> None:
        await self.control("/finish_weight_update", {"weight_version": str(version)})

    async def set_version(self, version: int) -> None:
        await self.control("/update_weight_version", {"new_version": str(version)})

    async def reset_prefix_cache(self) -> None:
        answer = await self.control("/reset_prefix_cache", reset_running_requests="true")
        if not answer.get("success"):
            raise InfrastructureFault("engine", "prefix cache", f"{self.name} could not reset its prefix cache")

    async def load_adapter(self, version: int, folder: Path) -> None:
        name = f"{self.name}-adapter".replace(" ", "-")
        body = {"lora_name": name, "lora_path": str(folder), "load_inplace": self.adapter == name}
        await self.control("/v1/load_lora_adapter", body)
        await self.set_version(version)
        self.model = self.adapter = name
