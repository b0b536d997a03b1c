"""Secrets that are planted wherever one can be given, a callback and an agent that take one, and a search for them."""

from __future__ import annotations

import base64
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import lightning as L

from tau2_lightning.config.keys import schema_keys
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.config.secrets import is_secret

HERE = "tests.security.canaries"
NAMED = re.compile(r"key|token|secret|password|credential|authorization|cookie", re.I)
# Keys of the schema whose names look like a secret's and whose values are none.
NO_SECRETS = re.compile(
    r"tokens|keep|tool_call|normalization|seq_mean|mask|_per_token|token_level|monkey|batch_keys|keyframe", re.I
)
# Each is as long as a key of W&B (40 characters), which checks that.
PLANTED_VARIABLES = (
    "WANDB_API_KEY", "HF_TOKEN", "OPENAI_API_KEY", "TAU2_LIGHTNING_ADMIN_KEY", "TAU2_LIGHTNING_CLIENT_KEY",
    "TAU2_LIGHTNING_JOB_KEY", "AWS_SECRET_ACCESS_KEY", "MY_OWN_PASSWORD",
)  # fmt: skip


def canary(name: str) -> str:
    """A text that appears nowhere else, 40 letters and digits."""
    mark = zlib.crc32(name.encode())
    return f"canary{mark:08x}".ljust(40, "9")


def secret_keys() -> list[str]:
    """The keys of the schema that hold a secret."""
    return [key.name for key in schema_keys(RunConfig) if is_secret(key.name)]


class Takes(L.Callback):
    """A callback of a user's with a secret."""

    def __init__(self, api_key: str, headers: dict[str, str]) -> None:
        self._secrets = api_key, headers


class Agent:
    """A workflow with a secret."""

    def __init__(self, access_token: str) -> None:
        self._secret = access_token

    async def run(self, data: Any, **_: Any) -> float:
        return 1.0


def planted_words() -> dict[str, str]:
    """Words that plant a canary, by the key that gets it: every secret key of the schema, and the open mappings."""
    words = {key: f"{key}={canary(key)}" for key in secret_keys() if not key.startswith("domains.")}
    deep = {
        "econfig.user_llm_args.extra_headers.Authorization": "econfig.user_llm_args",
        "econfig.judge_llm_args.apiKey": "econfig.judge_llm_args",
        "scheduler.slurm.password": "scheduler.slurm",
        "callbacks.mine.api_key": "+callbacks.mine",
        "rollout.workflow.access_token": "rollout.workflow",
    }
    for key, place in deep.items():
        value = f"'{canary(key)}'"
        words[key] = {
            "econfig.user_llm_args": f"{place}={{extra_headers: {{Authorization: {value}}}}}",
            "econfig.judge_llm_args": f"{place}={{apiKey: {value}}}",
            "scheduler.slurm": f"{place}={{password: {value}}}",
            "+callbacks.mine": f"{place}={{_target_: {HERE}.Takes, api_key: {value}, headers: {{x-api-key: {value}}}}}",
            "rollout.workflow": f"{place}={{_target_: {HERE}.Agent, access_token: {value}}}",
        }[place]
    return words


def planted_environment() -> dict[str, str]:
    """Variables that are named like a secret."""
    return {name: canary(name) for name in PLANTED_VARIABLES}


def forms(secret: str) -> set[bytes]:
    """How a secret may be written: as it is, in base64 (an Authorization header), quoted for a URL, in UTF-16."""
    plain = secret.encode()
    return {plain, base64.b64encode(plain)[:-4], quote(secret).encode(), secret.encode("utf-16-le")}


def found_in(content: bytes, secrets: Mapping[str, str]) -> list[str]:
    """The names of the ``secrets`` that ``content`` shows."""
    return [name for name, secret in secrets.items() if any(form in content for form in forms(secret))]


def contents(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every file below ``folder``, its name among its bytes; of zip and Parquet files also what is inside them."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            yield name, os.readlink(path).encode()
        if not path.is_file():
            yield name, name.encode()
            continue
        content = path.read_bytes()
        yield name, name.encode() + content
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    yield f"{name}/{member}", archive.read(member)
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
            yield f"{name} (table)", repr(table.to_pydict()).encode() + repr(table.schema.metadata).encode()


def shown_below(folder: Path, secrets: Mapping[str, str]) -> dict[str, list[str]]:
    """The files that show one of the ``secrets``, with the names of those."""
    return {name: found for name, content in contents(folder) if (found := found_in(content, secrets))}
