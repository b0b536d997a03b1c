"""A vLLM server as a supervised child process: its command line, its start, its log and its end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp
import torch

from tau2_lightning.errors import ConfigError, DeadlineExceeded, InfrastructureFault, Violation
from tau2_lightning.launch import watchdog as engine_watchdog
from tau2_lightning.launch.net import free_port
from tau2_lightning.launch.ranks import JOB_VARIABLE
from tau2_lightning.launch.ranks import KEY_VARIABLE as JOB_KEY_VARIABLE
from tau2_lightning.rollout.engine.in_vllm.auth import KEY_VARIABLE

from .place import EnginePlace

STOP_SECONDS = 8.0
SERVER_IDLE_SECONDS = 120  # far above engine_client.IDLE_SECONDS: the client closes idle connections, never the server
KILL_SECONDS = 30.0  # what the kernel may need to take back a killed engine's memory
PORT_SECONDS = 10.0
POLL_SECONDS = 0.05
START_ATTEMPTS = 3
SMALL_MODEL_BYTES = 64 << 20
# A trainer under torchrun has these set; vLLM would take them for its own process group. The job's are nobody else's.
TRAINER_VARIABLES = (
    *("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT"),
    *(JOB_VARIABLE, JOB_KEY_VARIABLE),
)


# Not the head: with an adapter's wrapping around it, vLLM 0.32 dies of the first request for prompt log-probs on CPU.
LORA_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class EngineSettings:
    """What to serve and how. ``urls`` names running servers; without it ``data_parallel`` children are launched.

    ``model_path`` is a Hugging Face folder or id. ``kv_cache_gib`` holds on CPU, ``gpu_memory_utilization`` on CUDA.
    ``port`` 0 takes free ports; otherwise server i listens on ``port + i``. ``threads`` 0 chooses: one for models
    below 64 MB, where more only spin, else all cores of this process. ``log_path`` is the file the servers' output
    goes to (``-<i>`` is added after the first); None means a temporary file. ``lora_rank`` above 0 enables adapters up
    to that rank. ``attempts`` is how many engines one request may try; ``max_restarts`` how often one child may die.
    ``places`` says where each server runs; without them all run here, each on the next ``tensor_parallel`` GPUs.
    """

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
    logprobs_mode: str = "processed_logprobs"
    enforce_eager: bool | None = None
    threads: int = 0
    seed: int = 0
    lora_rank: int = 0
    device: str = "auto"
    extra_args: tuple[str, ...] = ()
    extra_env: tuple[tuple[str, str], ...] = ()
    log_path: Path | None = None
    start_timeout_s: float = 600.0
    attempts: int = 3
    max_restarts: int = 5

    def place(self, index: int) -> EnginePlace:
        """Where server ``index`` runs."""
        if self.places:
            return self.places[index]
        size = self.tensor_parallel
        return EnginePlace(self.host, tuple(range(index * size, (index + 1) * size)) if self.data_parallel > 1 else ())

    @property
    def on_cpu(self) -> bool:
        """Whether launched servers run on CPU."""
        return not torch.cuda.is_available() if self.device == "auto" else self.device == "cpu"


def server_command(settings: EngineSettings, port: int) -> list[str]:
    """The vLLM server's argument list. Same flags on CPU and CUDA but for memory, compilation and executor."""
    flags: dict[str, object] = {
        "model": settings.model_path,
        "served-model-name": settings.served_name,
        "host": settings.host,
        "port": port,
        "dtype": settings.dtype,
        "max-model-len": settings.max_model_len,
        "max-num-seqs": settings.max_num_seqs,
        "tensor-parallel-size": settings.tensor_parallel,
        "seed": settings.seed,
        "logprobs-mode": settings.logprobs_mode,
        "worker-extension-cls": "tau2_lightning.rollout.engine.in_vllm.transfer.WorkerExtension",
        "weight-transfer-config": json.dumps({"backend": "shm" if settings.on_cpu else "cuda"}),
        # The last one is the outermost.
        "middleware": (
            "tau2_lightning.rollout.engine.in_vllm.generate.FastGenerate",
            "tau2_lightning.rollout.engine.in_vllm.auth.RequireKey",
        ),
        "generation-config": "vllm",  # the request alone says how to sample
        "enable-scale-out": None,
        "enable-prompt-tokens-details": None,
        "disable-uvicorn-access-log": None,
        "disable-log-stats": None,
    }
    if settings.on_cpu:
        flags["kv-cache-memory-bytes"] = int(settings.kv_cache_gib * 2**30)
        # A prompt that fits is prefilled in one step.
        flags["max-num-batched-tokens"] = max(2048, settings.max_model_len)
        # The prefix cache knows whole blocks only; vLLM's 128 on CPU recomputes 64 tokens a turn on average.
        flags["block-size"] = 32
        if settings.tensor_parallel == 1:
            flags["distributed-executor-backend"] = "uni"
    else:
        flags["gpu-memory-utilization"] = settings.gpu_memory_utilization
    if settings.enforce_eager or (settings.enforce_eager is None and settings.on_cpu):
        flags["enforce-eager"] = None
    if settings.lora_rank:
        flags |= {"enable-lora": None, "max-lora-rank": settings.lora_rank}
    command = [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry"]
    for name, value in flags.items():
        for one in value if isinstance(value, tuple) else (value,):
            command += [f"--{name}"] if one is None else [f"--{name}", str(one)]
    if settings.lora_rank:
        command += ["--lora-target-modules", *LORA_MODULES]
    return [*command, *settings.extra_args]


def server_environment(settings: EngineSettings, index: int) -> dict[str, str]:
    """The child's environment: this process's own, less what belongs to the trainer, plus vLLM's switches."""
    environment = {k: v for k, v in os.environ.items() if k not in TRAINER_VARIABLES and "TORCHELASTIC" not in k}
    environment |= {
        KEY_VARIABLE: settings.api_key,
        "VLLM_HTTP_TIMEOUT_KEEP_ALIVE": str(SERVER_IDLE_SECONDS),
        "VLLM_SERVER_DEV_MODE": "1",  # pause, weight and cache routes; RequireKey guards them
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if Path(settings.model_path).is_dir():
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if settings.lora_rank:
        environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "True"
    if settings.on_cpu:
        threads = settings.threads or _default_threads(settings.model_path)
        # A vLLM that was built for CUDA would take a GPU it sees, whatever the run was told.
        environment |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads)}
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        if settings.tensor_parallel == 1:
            # vLLM on CPU insists on a third process (executor "mp") unless this says otherwise; its engine core
            # is a process of its own in any case.
            environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if settings.enforce_eager or settings.enforce_eager is None:
            # Otherwise the first request with log-probs compiles one small function with inductor: 20 s.
            environment["TORCHDYNAMO_DISABLE"] = "1"
    else:
        environment |= settings.place(index).variables()
        if settings.dtype == "float32":
            # vLLM's attention leaves the precision of its products to Triton's default, which is TF32: log-probs then
            # differ from the trainer's in the second decimal.
            environment.setdefault("TRITON_F32_DEFAULT", "ieee")
    return environment | dict(settings.extra_env)


def _default_threads(model_path: str) -> int:
    folder = Path(model_path)
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) if folder.is_dir() else SMALL_MODEL_BYTES
    return 1 if size < SMALL_MODEL_BYTES else len(os.sched_getaffinity(0))


class EngineServer:
    """One vLLM server. ``start`` returns at once; ``wait_ready`` says when it answers; ``stop`` leaves nothing behind.

    The child is a watchdog (see ``engine_watchdog``) leading a session with vLLM's processes in it. Raises ConfigError
    when vLLM is missing or the configured port is taken, InfrastructureFault("engine", "crash") with the log's tail
    when the server dies while starting, DeadlineExceeded when it does not answer, or does not end, in time. A port
    that was not configured is another one after each start: read ``url`` once ``wait_ready`` has returned.
    """

    def __init__(self, settings: EngineSettings, index: int = 0) -> None:
        self.place = settings.place(index)
        self.settings, self.index = replace(settings, host=self.place.host), index
        self.name = f"engine {index}"
        self.port = 0
        self.log_path = self._log_path()
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._started_at = 0.0
        self._log_begins = 0

    @property
    def url(self) -> str:
        return f"http://{self.settings.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Process id of the watchdog, which is also the id of the process group."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether it runs and was not told to end."""
        return self._process is not None and not self._killed and self._process.poll() is None

    def claim_port(self) -> None:
        """Choose the port of the next start. Raises ConfigError when the configured one is taken."""
        wanted = self.settings.port + self.index if self.settings.port else 0
        try:
            # Of another node nothing is known; should the port be taken there, another is tried.
            self.port = free_port("" if self.place.agent else self.settings.host, 0 if self.place.agent else wanted)
        except OSError as error:
            remedy = "Choose another one, or 0 for any free port"
            raise ConfigError([Violation("rollout.engine_port", wanted, f"cannot listen: {error}", remedy)]) from error

    def start(self) -> None:
        """Launch the child on the claimed port and return. Raises ConfigError."""
        if importlib.util.find_spec("vllm") is None:
            remedy = "Install tau2-lightning[cpu] or tau2-lightning[gpu], or set rollout.engine_urls"
            raise ConfigError([Violation("rollout.engine_urls", [], "vLLM is not installed", remedy)])
        if not self.port:
            self.claim_port()
        command, environment = server_command(self.settings, self.port), server_environment(self.settings, self.index)
        if self.place.agent:
            command, environment = self.place.through_agent(self.name, command, environment)
        else:
            command = engine_watchdog.guarded(command, STOP_SECONDS)
        self._started_at, self._killed = time.monotonic(), False
        with self.log_path.open("ab") as log:
            self._log_begins = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    async def restart(self) -> None:
        """End what is left of the child and launch another, on another port unless one is configured.

        Raises ConfigError when the configured port stays taken for some seconds, DeadlineExceeded as ``gone``.
        """
        self.kill()
        await self.gone()
        ends = time.monotonic() + PORT_SECONDS
        while True:
            try:
                self.claim_port()
            except ConfigError:
                if time.monotonic() > ends:
                    raise
                await asyncio.sleep(POLL_SECONDS)
            else:
                return self.start()

    async def wait_ready(self) -> float:
        """Wait until the server answers; returns the seconds since ``start``."""
        limit, attempts = self.settings.start_timeout_s, 1
        # With our key, which another program that took the port would not know.
        headers = {"Authorization": f"Bearer {self.settings.api_key}"}
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5), headers=headers) as session:
            while True:
                waited = time.monotonic() - self._started_at
                if not self.alive:
                    if not self._lost_its_port() or attempts == START_ATTEMPTS:
                        crash = f"{self.name} died while starting\n{self.log_tail()}"
                        raise InfrastructureFault("engine", "crash", crash)
                    attempts += 1
                    await self.restart()
                    continue
                if waited > limit:
                    doing = f"starting {self.name} on port {self.port}; its log ends:\n{self.log_tail()}"
                    raise DeadlineExceeded("engine", limit, doing)
                try:
                    async with session.get(f"{self.url}/v1/models") as response:
                        if response.status == 200:
                            return waited
                except (aiohttp.ClientError, TimeoutError):
                    pass  # not listening yet
                await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """End the server in order: SIGTERM, then SIGKILL of the group after a few seconds. Safe to call twice."""
        if self.alive:
            assert self._process is not None
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(self._process.wait, STOP_SECONDS + 2)
        self.kill()
        await self.gone()

    def kill(self) -> None:
        """SIGKILL the whole process group and return at once; ``gone`` waits for its end."""
        if self._process is None or self._killed:
            return  # once only: later the number may be another group's
        self._killed = True
        with contextlib.suppress(ProcessLookupError):  # the watchdog has already ended its group and itself
            os.killpg(self._process.pid, signal.SIGKILL)

    async def gone(self, within: float = KILL_SECONDS) -> None:
        """Wait until no process of the group lives any more. Raises DeadlineExceeded naming those that do."""
        if self._process is None:
            return
        ends = time.monotonic() + within
        while left := engine_watchdog.living_in_group(self._process.pid):
            if time.monotonic() > ends:
                raise DeadlineExceeded("engine", within, f"ending {self.name}: processes {left} are still there")
            await asyncio.sleep(POLL_SECONDS)
        self._process.wait(1.0)
        if self._process.stdin:
            self._process.stdin.close()

    def log_tail(self, lines: int = 25) -> str:
        """The last lines of the server's log, for error messages."""
        text = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return (
            "\n".join(f"  | {line[:300]}" for line in text.splitlines()[-lines:]) + f"\n  (all of it: {self.log_path})"
        )

    def _lost_its_port(self) -> bool:
        """Whether another program took the port between its choice and the server's first use of it."""
        if self.settings.port:
            return False
        with self.log_path.open("rb") as log:
            log.seek(self._log_begins)
            return b"address already in use" in log.read().lower()

    def _log_path(self) -> Path:
        path = self.settings.log_path or Path(tempfile.mkdtemp(prefix="tau2-lightning-")) / "engine.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_stem(f"{path.stem}-{self.index}") if self.index else path
