"""What mkdocs calls while it builds the site (``hooks`` in mkdocs.yml).

CHANGELOG.md and CONTRIBUTING.md stay at the top of the repository, where people look for them, and are pages of the
site too. GitHub wants ``\\|`` for a bar in the code of a table; Python-Markdown would print the backslash.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FROM_THE_TOP = ("CHANGELOG.md", "CONTRIBUTING.md")
_CODE = re.compile(r"`[^`]*`")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages of the repository's top, with their links as they are inside ``docs/``."""
    for name in FROM_THE_TOP:
        text = (ROOT / name).read_text(encoding="utf-8").replace("](docs/", "](")
        for other in FROM_THE_TOP:
            text = text.replace(f"]({other}", f"]({other.lower()}")
        files.append(File.generated(config, name.lower(), content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Bars in the code of tables, as Python-Markdown wants them."""
    return "\n".join(plain_bars(line) if line.startswith("|") else line for line in markdown.split("\n"))


def plain_bars(row: str) -> str:
    """A row of a table whose code has ``|`` instead of ``\\|``."""
    return _CODE.sub(lambda code: code[0].replace("\\|", "|"), row)
