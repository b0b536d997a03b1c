"""What the command ``export`` is asked for, checked before anything is read: the checkpoint, its model, the target."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tau2_lightning.callbacks.retention import BEST
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.launch.manifest import damage
from tau2_lightning.launch.run_folder import META, RunFolder
from tau2_lightning.policy.loading import check_policy_path, resolve_policy
from tau2_lightning.policy.written import SHARD_BYTES
from tau2_lightning.strategy.checkpoint import read_meta

from .checkpoints import check_checkpoint

DTYPES = ("bfloat16", "float16", "float32")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}
_SIZE = re.compile(r"(?P<count>\d+(?:\.\d+)?)\s*(?P<unit>[A-Za-z]*)")
_REMEDY = "Give a folder step<n>.ckpt of a run, the run's folder (its newest checkpoint), or its best.json"


@dataclass(frozen=True)
class Export:
    """A checked request. ``base`` is the folder that training started from, ``template`` its configured chat template.

    With ``merge_adapters`` false only the adapters of a checkpoint are written.
    """

    checkpoint: Path
    base: Path
    out: Path
    dtype: str
    merge_adapters: bool
    shard_bytes: int
    template: str | None

    @classmethod
    def of(cls, words: Sequence[str]) -> Export:
        """From the words of a command line. Raises ConfigError that names everything that is wrong with them; what is
        in the checkpoint is read only when nothing is.
        """
        places = [word for word in words if "=" not in word]
        given = dict(word.partition("=")[::2] for word in words if "=" in word)
        found = [
            Violation(key, value, "no such key", f"Use one of: {', '.join(_KEYS)}")
            for key, value in given.items()
            if key not in _KEYS
        ]
        dtype, merges = given.get("dtype", DTYPES[0]), given.get("merge_adapters", "true").lower()
        if dtype not in DTYPES:
            found.append(Violation("dtype", dtype, "unknown", f"Use one of: {', '.join(DTYPES)}"))
        if merges not in ("true", "false"):
            found.append(Violation("merge_adapters", merges, "is no truth value", "Use true or false"))
        size = given.get("max_shard_size", str(SHARD_BYTES))
        if (shard_bytes := _bytes(size)) is None:
            found.append(
                Violation("max_shard_size", size, "is no size", "Use a number with a unit, such as 5GB or 500MB")
            )
        if len(places) != 1:
            problem = "is not one checkpoint" if places else "no checkpoint is named"
            found.append(Violation("checkpoint", places or "", problem, _REMEDY))
        elif not Path(places[0]).exists():
            found += _no_checkpoint(Path(places[0]), "no such folder").violations
        found += _taken(given["out"]) if "out" in given else []
        if found:
            raise ConfigError(found)
        checkpoint = find_checkpoint(Path(places[0]))
        out = Path(given["out"]) if "out" in given else _beside(checkpoint)
        if taken := _taken(out):
            raise ConfigError(taken)
        meta = read_meta(checkpoint)
        base = _base(checkpoint, meta, given.get("base"))
        check_checkpoint(str(checkpoint), base)
        template = ((meta.get("configuration") or {}).get("actor") or {}).get("chat_template")
        return cls(checkpoint, base, out, dtype, merges == "true", shard_bytes or SHARD_BYTES, template)


def _taken(out: str | Path) -> list[Violation]:
    """A violation if ``out`` is no name for a new folder. An empty folder is as good as none."""
    if not str(out):
        return [Violation("out", "", "names no folder", "Name a new folder, or leave it out")]
    if Path(out).exists() and (not Path(out).is_dir() or any(Path(out).iterdir())):
        return [Violation("out", str(out), "exists already", "Name another folder, or remove it")]
    return []


_KEYS = ("out", "dtype", "merge_adapters", "max_shard_size", "base")


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that ``path`` names, every byte of it checked: itself, the newest of a run's folder, or the one in
    its ``best.json``. Raises ConfigError for anything else, and for a damaged one."""
    found = path
    if path.name == BEST and path.is_file():
        try:
            found = path.parent / "checkpoints" / orjson.loads(path.read_bytes())["checkpoint"]
        except (ValueError, KeyError, TypeError) as error:
            raise _no_checkpoint(path, f"cannot be read: {error}") from error
    elif (path / "checkpoints").is_dir():
        newest = RunFolder(path).finished_checkpoints()
        if not newest:
            raise _no_checkpoint(path, "the run has no complete checkpoint")
        found = newest[0]
    if not found.exists():
        raise _no_checkpoint(found, "no such folder")
    if (found / "config.json").is_file():
        raise _no_checkpoint(found, "is a Hugging Face folder already")
    if not (found / META).is_file():
        raise _no_checkpoint(found, f"is no complete checkpoint: it has no {META}")
    if (problem := damage(found)) is not None:
        raise ConfigError([Violation("checkpoint", str(found), f"is damaged: {problem}", "Give another checkpoint")])
    try:
        read_meta(found)
    except ConfigError:
        raise
    except Exception as error:  # a file without a digest, of an earlier version, may hold anything
        raise _no_checkpoint(found, f"its {META} cannot be read ({type(error).__name__})") from error
    return found


def _base(checkpoint: Path, meta: dict[str, Any], given: str | None) -> Path:
    """The folder that training started from: configuration and tokenizer, and with adapters the weights."""
    actor = (meta.get("configuration") or {}).get("actor") or {}
    exported = checkpoint.parent.parent / "policy"
    candidates = [given] if given is not None else [meta.get("policy_path"), actor.get("path"), str(exported)]
    for candidate in candidates:
        if candidate and not check_policy_path(candidate, "base", template=""):
            return resolve_policy(candidate, "base")
    if given is not None:
        raise ConfigError(check_policy_path(given, "base", template=""))
    tried = ", ".join(str(one) for one in candidates if one)
    problem = f"the model that training started from is not there any more ({tried})"
    raise ConfigError([Violation("base", "", problem, "Name its folder: base=FOLDER")])


def _beside(checkpoint: Path) -> Path:
    """``exports/<name>`` of the run's folder; of a checkpoint elsewhere a folder beside it."""
    if checkpoint.absolute().parent.name == "checkpoints":
        return RunFolder(checkpoint.absolute().parent.parent).exports / checkpoint.stem
    return checkpoint.absolute().with_name(f"{checkpoint.stem}-exported")


def _bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text.strip())
    factor = _UNITS.get(match["unit"].upper()) if match is not None else None
    if match is None or factor is None:
        return None
    return int(float(match["count"]) * factor) or None


def _no_checkpoint(path: Path, problem: str) -> ConfigError:
    return ConfigError([Violation("checkpoint", str(path), problem, _REMEDY)])
