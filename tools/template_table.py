"""Makes the table of docs/templates.md: which chat templates are accepted, and how they are handled.

    python tools/template_table.py FOLDER TOKENIZER

FOLDER holds Jinja templates, TOKENIZER is a Hugging Face folder. The tokenizer gets the special tokens that a template
mentions, because the template's own model has them. Formats that only vLLM's parsers read need vLLM.
"""

from __future__ import annotations

import copy
import re
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.parser_probe import read_by_vllm
from tau2_lightning.rollout.chat.probe import TemplateReport, examine
from tau2_lightning.rollout.chat.template import ChatFormatError

HEAD = ("template", "accepted", "parser", "changed for it", "rewrites")
_MARKS = re.compile(r"<[|｜][^<>|｜\n]{0,40}[|｜]?>|<\w+\|>|\[/?[A-Z_]{4,}\]|<(?:start|end)_of_turn>")  # noqa: RUF001
#: Special tokens that real tokenizers have, although the template does not mention them.
_ALSO = {"llama3_2": ["<|python_tag|>"]}


def row(file: Path, tokenizer: Any) -> tuple[str, ...]:
    """The cells of one template."""
    source = file.read_text(encoding="utf-8")
    try:
        found = examine(ChatFormat(_prepared(tokenizer, source, _ALSO.get(file.stem, [])), None))
    except ChatFormatError as error:
        return file.stem, f"no: {_cell(str(error))}", "", "", ""
    if found.lost:
        return file.stem, f"no: {_cell('; '.join(found.lost))}", "", "", ""
    if found.choice.name is None:
        return file.stem, f"no: no parser reads `{_cell(found.written[:40])}`", "", "", ""
    return file.stem, "yes", _parser(found), "; ".join(found.changes()), ", ".join(found.rewrites) or "nothing"


def lines(folder: Path, tokenizer: Path) -> Iterator[str]:
    """The table of the templates in ``folder`` as Markdown, without those that are made for training."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(tokenizer))
    files = [file for file in sorted(folder.glob("*.jinja")) if not file.stem.endswith("_training")]
    for cells in chain([HEAD, ("---",) * len(HEAD)], (row(file, loaded) for file in files)):
        yield "| " + " | ".join(cells) + " |"


def _parser(found: TemplateReport) -> str:
    name = str(found.choice.name)
    return f"`{name}` (vLLM's)" if read_by_vllm(name) else f"`{name}`"


def _prepared(loaded: Any, source: str, more: list[str]) -> Any:
    """A copy of the tokenizer with the template ``source`` and its special tokens."""
    tokenizer = copy.deepcopy(loaded)
    tokenizer.add_tokens(list(dict.fromkeys([*_MARKS.findall(source), *more])), special_tokens=True)
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.chat_template = source
    return tokenizer


def _cell(text: str) -> str:
    text = text.replace("the chat template does not accept these messages: ", "")
    return " ".join(text.replace("|", "\\|").split())


if __name__ == "__main__":
    for line in lines(Path(sys.argv[1]), Path(sys.argv[2])):
        print(line, flush=True)
