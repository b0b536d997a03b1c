"""The engines by their names in ``allocation_mode``: how a server of each is started, and the client of one."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from tau2_lightning.errors import ConfigError, Violation

from . import command
from .client import EngineClient
from .names import SGLANG
from .settings import EngineSettings
from .sglang import command as sglang_command
from .sglang.client import SGLangClient
from .sglang.interpreter import check_python
from .sglang.model_facts import vocabulary_of
from .vllm_client import VLLMClient


def check_installed(settings: EngineSettings) -> None:
    """Raise ConfigError when the engine of ``settings`` is not installed on this machine."""
    if settings.backend == SGLANG:
        missing = check_python(settings.python)
    elif importlib.util.find_spec("vllm") is None:
        remedy = "Install tau2-lightning[cpu] or tau2-lightning[gpu], or set rollout.engine_urls"
        missing = Violation("rollout.engine_urls", [], "vLLM is not installed", remedy)
    else:
        missing = None
    if missing:
        raise ConfigError([missing])


def server_command(settings: EngineSettings, port: int) -> list[str]:
    """The argument list of a server. Raises ConfigError for settings that cannot work."""
    if settings.backend == SGLANG:
        return sglang_command.server_command(settings, port)
    return command.server_command(settings, port)


def server_environment(settings: EngineSettings, index: int) -> dict[str, str]:
    """The environment of server ``index``. Raises ConfigError when the server's GPUs are not visible here."""
    if settings.backend == SGLANG:
        return sglang_command.server_environment(settings, index)
    return command.server_environment(settings, index)


def client_of(settings: EngineSettings, url: str, name: str, *, launched: bool) -> EngineClient:
    """The client of the server at ``url``; ``launched``: this program started it, with its own settings."""
    key = settings.api_key
    if settings.backend == SGLANG:
        vocabulary = vocabulary_of(Path(settings.model_path)) if settings.model_path else None
        longest = settings.max_model_len if launched else None
        return SGLangClient(url, api_key=key, name=name, vocabulary=vocabulary, longest=longest)
    return VLLMClient(url, api_key=key, name=name, forward_seed=launched)
