"""Whether a folder's tensors are those of the model that its config.json describes: names and shapes, by the headers.

A folder whose parts do not belong together would otherwise end inside the engine, minutes later, with an error that
names neither. Most folders store each parameter under its own name or under the names in `Family.fused`, and are
compared by these. What is left over is given to transformers without memory, which knows the other spellings.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy.loading import describes_only
from tau2_lightning.policy.model_config import read_config, unbuildable
from tau2_lightning.policy.text_part import is_composite, text_config
from tau2_lightning.policy.weight_files import StoredTensor, incomplete_files, stored_tensors

from .families.family import Parts
from .families.registry import family_of
from .held_parameters import model_without_memory
from .hf_files import ModelFiles

REMEDY = "Download or save the model again, or give the config.json that belongs to these weights"
#: Buffers that older files hold, and that transformers and engines skip.
_OLD_BUFFERS = r"rotary_emb\.inv_freq$|(^|\.)position_ids$"
_SHOWN = 3
_NUMBERS = ("BF16", "F16", "F32", "F64")
_ROWS = 64  # of the head and the embedding that are compared


def weight_violations(path: Path | str, key: str = "actor.path") -> list[Violation]:
    """One violation when the weights in the folder ``path`` are not those of its config.json; empty where they are.

    Also empty for what other checks refuse, for files other than safetensors, and for quantised weights, whose tensors
    have other names and shapes than the model. Takes some tenths of a second for a model of 30 billion parameters.
    """
    folder = Path(path)
    if not folder.is_dir() or describes_only(folder):
        return []
    files = [file for kind in ("*.json", "*.safetensors") for file in folder.glob(kind)]
    changed = max((file.stat().st_mtime_ns for file in files), default=0)
    found = _differences(folder.absolute(), changed)
    if not found:
        return []
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    problem = f"its weights are not those of its config.json: {'; '.join(found[:_SHOWN])}{more}"
    return [Violation(key, str(path), problem, REMEDY)]


@lru_cache(maxsize=8)
def _differences(folder: Path, changed: int) -> tuple[str, ...]:
    """One line for each tensor that is missing, has another shape, or is none of the model's. Kept, because every check
    asks again: ``changed`` is when the newest of the files was written."""
    try:
        whole = read_config(folder)
    except ConfigError:
        return ()
    text = text_config(whole)
    quantised = getattr(whole, "quantization_config", None) or getattr(text, "quantization_config", None)
    if quantised or unbuildable(text) or any(incomplete_files(folder)):
        return ()
    stored = stored_tensors(folder)
    if not stored:
        return ()
    if is_composite(whole):
        files = ModelFiles(folder)
        names = files.of_text_model(composite=True)
        stored = {name: stored[files.stored_name(name)] for name in names}
        files.close()
    compared = _Comparison(text, stored)
    found = [*_numbers(stored), *compared.by_names()]
    if not found and getattr(text, "tie_word_embeddings", False):
        found += _second_head(folder, text)
    if not compared.missing and not compared.left:
        return tuple(found)
    return tuple(found or _by_transformers(text, stored, alone=not is_composite(whole)))


def _numbers(stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """One line for each tensor that is no floating-point number of at least 16 bits: such weights are quantised, and
    their scales are elsewhere."""
    for name, tensor in stored.items():
        if tensor.dtype not in _NUMBERS and not re.search(_OLD_BUFFERS, name):
            yield f"{name} in {tensor.file} is stored as {tensor.dtype}, and only {', '.join(_NUMBERS)} are read"


def _second_head(folder: Path, text: Any) -> Iterator[str]:
    """One line where the head of a tied model is stored with other values than the embedding. An engine would use the
    embedding, and transformers the head. Some rows are compared: a head that is a copy has them all."""
    family = family_of(text)
    head, embedding = (Parts() if family is None else family.parts).tied
    files = ModelFiles(folder)
    try:
        if head not in files or embedding not in files:
            return
        step = max(1, text.vocab_size // _ROWS)
        rows = [slice(row, row + 1) for row in range(0, text.vocab_size, step)]
        if any(not torch.equal(files.read(head, (row,)), files.read(embedding, (row,))) for row in rows):
            yield f"{head} differs from {embedding}, and tie_word_embeddings=true says that they are one"
    finally:
        files.close()


class _Comparison:
    """``stored`` tensors against the parameters of a model of ``config``, by the names that the family gives them.

    After `by_names`, ``missing`` are the parameters that have no name here, and ``left`` the tensors that are none of
    the model's.
    """

    def __init__(self, config: Any, stored: Mapping[str, StoredTensor]) -> None:
        self._config, self._stored, self._family = config, stored, family_of(config)
        self.missing: list[str] = []
        self.left = set(stored)

    def by_names(self) -> Iterator[str]:
        """One line for each tensor of another shape, and for each piece of a parameter whose other pieces are there."""
        model = model_without_memory(self._config)
        parts = Parts() if self._family is None else self._family.parts
        tied = dict([parts.tied]) if getattr(self._config, "tie_word_embeddings", False) else {}
        self.left -= {name for name, _ in model.named_buffers()}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            shape = tuple(parameter.shape)
            if name in self._stored:
                self.left.discard(name)
                yield from self._shape(name, shape)
            elif tied.get(name) not in self._stored:
                pieces = self._pieces(name, shape)
                if not any(piece in self._stored for piece in pieces):
                    self.missing.append(name)
                    continue
                self.left -= set(pieces)
                for piece, part in pieces.items():
                    yield from self._shape(piece, part)
        skipped = [_OLD_BUFFERS, *(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ())]
        self.left = {name for name in self.left if not re.search("|".join(f"({one})" for one in skipped), name)}

    def _pieces(self, name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The tensors that the files hold in place of the parameter, with the shapes that they must have."""
        if self._family is None:
            return {}
        found = {}
        for index in range(shape[0]):
            pieces = self._family.fused(name, index)
            for piece in pieces:
                found[piece] = (shape[1] // len(pieces), *shape[2:])
        return found

    def _shape(self, name: str, shape: tuple[int, ...]) -> Iterator[str]:
        tensor = self._stored.get(name)
        if tensor is None:
            yield f"no file holds {name} ({list(shape)})"
        elif tensor.shape != shape:
            yield _other_shape(name, tensor, shape)


def _by_transformers(config: Any, stored: Mapping[str, StoredTensor], *, alone: bool) -> Iterator[str]:
    """What transformers says of the tensors when it loads them without memory. ``alone``: the files hold nothing but
    this model."""
    from transformers.utils import logging

    tensors = {name: torch.empty(tensor.shape, device="meta") for name, tensor in stored.items()}
    loaded: Any = type(model_without_memory(config))
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)  # its report of these differences
    logging.disable_progress_bar()
    try:
        options = {"output_loading_info": True, "ignore_mismatched_sizes": True, "device_map": {"": "meta"}}
        _, told = loaded.from_pretrained(None, config=config, state_dict=tensors, **options)
    except RuntimeError as error:  # pieces that cannot be joined
        yield f"transformers cannot join them ({str(error).splitlines()[0]})"
        return
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
    for name, has, needs in sorted(told["mismatched_keys"]):
        shape = tuple(needs)
        yield _other_shape(name, stored.get(name) or StoredTensor("the files", tuple(has)), shape)
    made = model_without_memory(config).state_dict()
    for name in sorted(told["missing_keys"]):
        yield f"no file holds {name} ({list(made[name].shape)})"
    if alone:
        for name in sorted(told["unexpected_keys"]):
            file = stored[name].file if name in stored else "a file"
            yield f"{file} holds {name}, which the model does not have"


def _other_shape(name: str, tensor: StoredTensor, shape: tuple[int, ...]) -> str:
    return f"{name} in {tensor.file} has the shape {list(tensor.shape)}, and the configuration makes it {list(shape)}"
