"""Where an engine server runs: which GPUs, and on which node of the job."""

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

# What a user sets for engines goes to those on other nodes as well.
_FORWARDED = ("VLLM_", "NCCL_", "HF_", "TRANSFORMERS_")


@dataclass(frozen=True)
class EnginePlace:
    """``host`` is the address the server listens on, ``devices`` its GPUs by index among those of its node (empty: as
    they come). ``agent`` is the node agent to ask for it, ``host:port``; empty for this node.
    """

    host: str = "127.0.0.1"
    devices: tuple[int, ...] = ()
    agent: str = ""

    def variables(self) -> dict[str, str]:
        """Environment of a server of this node."""
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
        """Command and environment of the process here that stands for ``command`` on the agent's node."""
        mine = [key for key, value in environment.items() if os.environ.get(key) != value or key.startswith(_FORWARDED)]
        forward = sorted(set(mine) - {"CUDA_VISIBLE_DEVICES"})
        request = {"name": name, "command": list(command), "devices": list(self.devices), "forward": forward}
        client = [sys.executable, "-I", str(Path(remote_client.__file__)), self.agent, json.dumps(request)]
        return client, {**environment, KEY_VARIABLE: os.environ[KEY_VARIABLE]}
