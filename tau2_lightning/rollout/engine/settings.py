"""Settings of the engine: what a server serves, how, and where."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from pathlib import Path

import torch

from .place import EnginePlace


@dataclass(frozen=True)
class EngineSettings:
    """What to serve and how. ``urls`` names running servers; without it ``data_parallel`` child processes are started.

    ``model_path`` is a Hugging Face folder or id. ``kv_cache_gib`` applies on CPU, ``gpu_memory_utilization`` on CUDA.
    ``port`` 0 takes free ports; otherwise server i listens on ``port + i``. ``log_path`` is the file for the output of
    server 0, and ``<stem>-<i>`` for server i; None means a temporary file. ``lora_rank`` above 0 enables adapters up to
    that rank. ``places`` names the place of each server; without it all servers run on this node, each on the next
    ``tensor_parallel`` GPUs. ``extra_args`` come last on the server's command line, and win. ``routed_experts``:
    servers return the experts that a mixture-of-experts model chose. ``sleep_level``: what servers give back of their
    GPUs when they are put to sleep (see `sleep`); 0 keeps them awake. A server that this program started may be
    restarted ``max_restarts`` times in ``restart_window_s`` seconds. ``backend`` is the engine, ``vllm`` or ``sglang``;
    ``python`` is SGLang's interpreter, of an environment of its own.
    """

    backend: str = "vllm"
    python: str = ""
    model_path: str = ""
    served_name: str = "policy"
    dtype: str = "auto"
    max_model_len: int = 4096
    max_num_seqs: int = 128
    kv_cache_gib: float = 0.5
    gpu_memory_utilization: float = 0.85
    host: str = "127.0.0.1"
    port: int = 0
    tensor_parallel: int = 1
    data_parallel: int = 1
    urls: tuple[str, ...] = ()
    places: tuple[EnginePlace, ...] = ()
    api_key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    seed: int = 0
    lora_rank: int = 0
    device: str = "auto"
    routed_experts: bool = False
    sleep_level: int = 0
    extra_args: tuple[str, ...] = ()
    log_path: Path | None = None
    start_timeout_s: float = 600.0
    max_restarts: int = 5
    restart_window_s: float = 3600.0

    def place(self, index: int) -> EnginePlace:
        """The place of server ``index``."""
        if self.places:
            return self.places[index]
        size = self.tensor_parallel
        return EnginePlace(self.host, tuple(range(index * size, (index + 1) * size)) if self.data_parallel > 1 else ())

    @property
    def on_cpu(self) -> bool:
        """Whether the servers that this process starts run on CPU."""
        return not torch.cuda.is_available() if self.device == "auto" else self.device == "cpu"
