"""Chat templates that replace a tokenizer's own: those of this project by name, any other by its file."""

from __future__ import annotations

from pathlib import Path

from tau2_lightning.errors import ConfigError, Violation

_FOLDER = Path(__file__).parent / "templates"


def template_names() -> list[str]:
    """The names of our templates."""
    return sorted(file.stem for file in _FOLDER.glob("*.jinja"))


def template_source(given: str, key: str = "actor.chat_template") -> str:
    """The Jinja text of the template ``given``: a name of ours, or the path of a file.

    Raises ConfigError, which names ``key``, for anything else.
    """
    ours = given in template_names()
    try:
        return (_FOLDER / f"{given}.jinja" if ours else Path(given)).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        remedy = f"Use one of these names ({', '.join(template_names())}), or the path of a Jinja file"
        raise ConfigError([Violation(key, given, f"no such template ({error})", remedy)]) from error
