"""The place of an engine server: its GPUs and its node."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch import remote_client
from tau2_lightning.launch.ranks import KEY_VARIABLE
from tau2_lightning.launch.remote_commands import visible

# Variables with these prefixes also reach engines on other nodes, since users set them for engines.
_FORWARDED = ("VLLM_", "SGLANG_", "NCCL_", "HF_", "TRANSFORMERS_")


@dataclass(frozen=True)
class EnginePlace:
    """Where one server runs.

    ``host`` is the address it listens on. ``devices`` are the indices of its GPUs among those of its node; empty leaves
    the choice to the engine. ``agent`` is the address ``host:port`` of the node agent that starts it; empty for this
    node.
    """

    host: str = "127.0.0.1"
    devices: tuple[int, ...] = ()
    agent: str = ""

    def variables(self) -> dict[str, str]:
        """Environment variables for a server on this node. Raises ConfigError when fewer GPUs are visible."""
        if self.agent or not self.devices:
            return {}
        try:
            return {"CUDA_VISIBLE_DEVICES": ",".join(visible(self.devices))}
        except IndexError:
            shown = os.environ.get("CUDA_VISIBLE_DEVICES")
            problem = f"an engine needs GPUs {list(self.devices)} of those visible"
            remedy = "Use a smaller allocation_mode, or show it more"
            raise ConfigError([Violation("CUDA_VISIBLE_DEVICES", shown, problem, remedy)]) from None

    def through_agent(
        self, name: str, command: Sequence[str], environment: Mapping[str, str]
    ) -> tuple[list[str], dict[str, str]]:
        """Command and environment of the local process that runs ``command`` on the agent's node."""
        mine = [key for key, value in environment.items() if os.environ.get(key) != value or key.startswith(_FORWARDED)]
        forward = sorted(set(mine) - {"CUDA_VISIBLE_DEVICES"})
        request = {"name": name, "command": list(command), "devices": list(self.devices), "forward": forward}
        client = [sys.executable, "-I", str(Path(remote_client.__file__)), self.agent, json.dumps(request)]
        return client, {**environment, KEY_VARIABLE: os.environ[KEY_VARIABLE]}
