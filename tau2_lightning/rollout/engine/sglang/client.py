"""SGLang's form of `EngineClient`. Requests are checked here first: some of them would end the whole server."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from pathlib import Path

import numpy as np

from tau2_lightning.errors import InfrastructureFault
from tau2_lightning.rollout.engine.client import EngineClient, PauseMode
from tau2_lightning.rollout.engine.generation import EngineRejected, Generation, SamplingParams, Scores

from .wire import GENERATE, Reader, parse_generation, parse_scores, request_body, score_body

#: SGLang refuses a request that fills its context: it is started with this many tokens more.
SPARE_TOKENS = 8


class SGLangClient(EngineClient):
    """Client of an SGLang server.

    A token id outside the vocabulary ends an SGLang server, so every request is compared with ``vocabulary`` (the
    number of the model's token ids; None: not known) and ``longest`` (tokens of prompt and completion) first.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str = "",
        name: str = "engine",
        vocabulary: int | None = None,
        longest: int | None = None,
    ) -> None:
        super().__init__(url, api_key=api_key, name=name)
        self.vocabulary, self.longest = vocabulary, longest
        self._running = 0
        self._idle, self._open = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._open.set()

    # --------------------------------------------------------------------------------------------------- requests

    async def generate(
        self, token_ids: Sequence[int], sampling: SamplingParams, *, within: float | None = None
    ) -> Generation:
        """See `EngineClient`. SGLang looks for a closed connection every few seconds, so a cancelled request goes on
        for so long."""
        self._check(token_ids, sampling)
        name = secrets.token_hex(16)
        body = request_body(token_ids, sampling, request_id=name, adapter=self.model)
        async with self._counted():
            work = asyncio.ensure_future(self.post(GENERATE, body))
            try:
                done, _ = await asyncio.wait((work,), timeout=within)
                if not done:
                    await self.control("/abort_request", {"rid": name})
                return parse_generation(await work, sampling, cut=not done)
            finally:
                work.cancel()

    def ends_in_time(self, sampling: SamplingParams) -> bool:
        """Every request: SGLang returns the tokens of a request that is aborted by its id."""
        return True

    async def stream(self, token_ids: Sequence[int], sampling: SamplingParams) -> AsyncIterator[Generation]:
        self._check(token_ids, sampling)
        name = secrets.token_hex(16)
        body = request_body(token_ids, sampling, request_id=name, adapter=self.model, stream=True)
        reader = Reader(sampling)
        # Closed with this generator, and not some time later: the server ends a request whose connection is gone.
        read = self.chunks(GENERATE, body, lambda event: (reader.read(event),))
        async with self._counted(), aclosing(read) as chunks:
            async for chunk in chunks:
                yield chunk

    async def score(self, token_ids: Sequence[int]) -> Scores:
        if len(token_ids) < 2:
            return Scores([], None)
        self._check(token_ids, SamplingParams(max_tokens=1))
        async with self._counted():
            return parse_scores(await self.post(GENERATE, score_body(token_ids, self.model)), token_ids, self.name)

    def _check(self, token_ids: Sequence[int], sampling: SamplingParams) -> None:
        """Raise EngineRejected for a request that would end the server, or that it refuses without naming a limit."""
        ids = np.asarray(token_ids)
        if ids.ndim != 1 or not ids.size or ids.dtype.kind not in "iu":
            raise EngineRejected(f"{self.name}: a prompt is a list of one or more token ids")
        named = {*sampling.logit_bias, *sampling.stop_token_ids, int(ids.min()), int(ids.max())}
        if min(named) < 0 or (self.vocabulary is not None and max(named) >= self.vocabulary):
            wrong = min(named) if min(named) < 0 else max(named)
            raise EngineRejected(f"{self.name}: token id {wrong} is not among the {self.vocabulary} of the model")
        if self.longest is not None and ids.size + sampling.max_tokens > self.longest:
            asked = f"{ids.size} tokens and max_tokens={sampling.max_tokens}"
            raise EngineRejected(f"{self.name}: {asked} are more than the {self.longest} of the context")

    @asynccontextmanager
    async def _counted(self) -> AsyncIterator[None]:
        """Counts a running request; waits while `pause` waits for the others."""
        await self._open.wait()
        self._running += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()

    # ------------------------------------------------------------------------------------------------------ state

    async def healthy(self, seconds: float = 5.0) -> bool:
        """SGLang's ``/health`` generates a token, which takes a second and fails while the server is paused."""
        try:
            return await self.answers("/model_info", seconds)
        except EngineRejected as error:
            problem = f"{self.url} is no SGLang server, which allocation_mode names ({error})"
            raise InfrastructureFault("engine", "another engine", problem) from error

    async def responds(self, seconds: float) -> bool:
        """The answer holds numbers of the scheduler, which gives them between two steps."""
        try:
            return await self.answers("/server_info", seconds)
        except EngineRejected:
            return True

    async def served_length(self) -> int:
        """Also the limit of this client's requests from now on."""
        self.longest = int((await self.get("/v1/models"))["data"][0]["max_model_len"]) - SPARE_TOKENS
        return self.longest

    async def world_size(self) -> int:
        return int((await self.get("/server_info"))["tp_size"])

    # ---------------------------------------------------------------------------------------------------- weights

    async def pause(self, mode: PauseMode) -> None:
        """``wait`` is done here, because SGLang has no such mode: new requests wait, the running ones end. ``keep`` is
        SGLang's ``retract``: keys and values are computed again with the new weights. In its ``in_place`` the old ones
        stay, and the tokens that follow are of neither policy.
        """
        if mode == "wait":
            self._open.clear()
            await self._idle.wait()
        await self.control("/pause_generation", {"mode": "abort" if mode == "abort" else "retract"})

    async def resume(self) -> None:
        self._open.set()
        await self.control("/continue_generation", {})

    async def begin_update(self) -> None:
        try:
            await self.control("/begin_weight_update", {})
        except EngineRejected:  # an earlier publication broke off in a server that is not ours to restart
            await self.control("/end_weight_update", {})
            await self.control("/begin_weight_update", {})

    async def load_files(self, files: Iterable[str | Path]) -> None:
        """SGLang reads all weight files of a folder; it drops its cache with them."""
        with gathered([Path(file) for file in files]) as folder:
            await self.control("/update_weights_from_disk", {"model_path": str(folder), "flush_cache": True})

    async def finish_update(self, version: int) -> None:
        await self.control("/end_weight_update", {})
        await self.set_version(version)

    async def set_version(self, version: int) -> None:
        # By default this ends all requests, also those that are paused to continue.
        await self.control("/update_weight_version", {"new_version": str(version), "abort_all_requests": False})

    async def reset_prefix_cache(self) -> None:
        """Nothing to do: SGLang drops its cache with every update of weights, and keeps one for each adapter."""

    async def load_adapter(self, version: int, folder: Path) -> None:
        """A name is loaded once only, so each version has its own; the previous one is dropped."""
        name, previous = f"adapter-{version}-{secrets.token_hex(4)}", self.adapter
        await self.control("/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        await self.set_version(version)
        self.model = self.adapter = name
        if previous:
            await self.control("/unload_lora_adapter", {"lora_name": previous})


@contextmanager
def gathered(files: Sequence[Path]) -> Iterator[Path]:
    """A folder beside ``files`` with nothing but links to them."""
    folder = Path(tempfile.mkdtemp(prefix="sglang-", dir=files[0].parent))
    try:
        for file in files:
            (folder / file.name).symlink_to(file.absolute())
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
