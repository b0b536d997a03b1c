"""What a path is when it is no model: a file, an adapter, a checkpoint, a folder that was copied without its targets.

Each answer is (problem, remedy), for a Violation.
"""

from __future__ import annotations

import json
from pathlib import Path

FOLDER = "Give a Hugging Face folder or a hub id `owner/name`"
_ADAPTER = "adapter_config.json"
_CHECKPOINT = "meta.pt"  # `launch.run_folder.META`; this layer knows no runs
#: The ends of the names of files that a model consists of.
_OF_A_MODEL = (".json", ".jinja", ".safetensors", ".model", ".tiktoken", ".txt", ".bin")
#: Weights in PyTorch's own format. Other *.bin files are settings and states of a training.
_PYTORCH = "pytorch_model*.bin"


def no_folder(path: str) -> tuple[str, str]:
    """Why ``path``, which is no folder and has not the form of a hub id, is no model."""
    if path.endswith(".gguf") and Path(path).is_file():
        return "is a GGUF file, not a folder", f"Set actor.gguf={path}, and actor.path to the folder to make of it"
    if Path(path).exists():
        return "is a file, not a folder", f"Give the folder that holds it: {Path(path).parent}"
    if path.startswith("~"):  # a shell expands it at the beginning of a word only
        return "no such folder: the shell has left ~ as it is", f"Write $HOME{path[1:]}"
    return "no such folder", FOLDER


def no_model(folder: Path) -> tuple[str, str] | None:
    """Why ``folder`` is no model; None if it holds a configuration and weights, whose contents are not looked at."""
    links = [file.name for file in sorted(folder.iterdir()) if file.suffix in _OF_A_MODEL and not file.exists()]
    if links:
        return (
            f"its {links[0]} links to a file that is not there",
            "Download the model again, or copy it with cp -L",
        )
    has_weights = any(folder.glob("*.safetensors")) or any(folder.glob(_PYTORCH))
    if (folder / _ADAPTER).is_file():
        return f"holds an adapter ({_ADAPTER}) of {_base(folder)}", (
            "Merge it into that model and give the result, or give the model and train an adapter with actor.lora.r"
        )
    if not (folder / "config.json").is_file():
        return "holds no config.json", "Give a Hugging Face model folder" + _made_of(folder)
    if not has_weights:
        return "holds no weights", "Give a folder with *.safetensors files" + _made_of(folder)
    return None


def _base(folder: Path) -> str:
    try:
        return str(json.loads((folder / _ADAPTER).read_text())["base_model_name_or_path"])
    except (OSError, ValueError, LookupError, TypeError):
        return "another model"


def _made_of(folder: Path) -> str:
    """What else can be done with a folder that holds something from which a model can be made."""
    if file := next(folder.glob("*.gguf"), None):
        return f", or set actor.gguf={file} and actor.path to the folder to make of it"
    if (folder / _CHECKPOINT).is_file() or any(folder.glob(f"*/{_CHECKPOINT}")):
        return ". A checkpoint becomes one by `python -m tau2_lightning.export CHECKPOINT out=FOLDER`"
    return ""
