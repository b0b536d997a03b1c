"""Write docs/configuration.md: every key with type, bounds, default and help.

    python tools/config_reference.py

The page is made from the schema and conf/, as ``--help KEY`` is; a test checks that the page is up to date.
"""

from __future__ import annotations

from pathlib import Path

from tau2_lightning.run.reference import Entry, entries, shown

PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
TABLE = ("| key | type | default | |", "|---|---|---|---|")
HEAD = """# Configuration

<!-- Written by tools/config_reference.py from tau2_lightning/config and conf/. Change those, not this page. -->

Every key of a run, with its default. A key is given as `key=value` on the command line of `tau2_lightning.train`,
`tau2_lightning.sft` and `tau2_lightning.serve`, or in a file of `conf/experiment/` (or of a folder of your own:
`--config-dir DIR experiment=NAME`). `--help KEY` prints the same; `--cfg job` prints the configuration that a command
line results in.

`null` as a default is explained by its key. Where a real model (`actor.path=...`) has another default than the embedded
tiny policy, both are named. The keys of `algorithm` are those of the chosen class; those of GRPO, the default, are
listed.
"""


def page() -> str:
    """The page's text: a table for each section, with its keys except those of its subsections."""
    real = {one.key.name: one.default for one in entries(["actor.path=PATH"])}
    parts = {"": ["## Top level", "", *TABLE]}
    for entry in entries():
        name = entry.key.name
        if entry.key.section is not None or (entry.key.kind == "mapping" and entry.default is None):
            parts[name] = [f"## {name}", "", f"{entry.key.help.removesuffix('.')}.".replace("``", "`"), "", *TABLE]
            continue
        parent = max((one for one in parts if name.startswith(f"{one}.")), key=len, default="")
        parts[parent].append(_row(entry, real.get(name, entry.default)))
    return "\n\n".join([HEAD.rstrip(), *("\n".join(lines) for lines in parts.values())]) + "\n"


def _row(entry: Entry, real: object) -> str:
    default = f"`{shown(entry.default)}`"
    if real != entry.default and entry.key.name != "actor.path":
        default += f" (a real model: `{shown(real)}`)"
    kind = ", ".join(fact for fact in (entry.key.kind, entry.key.bounds) if fact)
    cells = (f"`{entry.key.name}`", kind, default, entry.key.help)
    return "| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page())
