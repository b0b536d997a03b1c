"""A split of one's own: a text file with the id of one task on each line, in the place of a split's name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from tau2_lightning.errors import ConfigError, Violation

SUFFIX = ".txt"
_SHOWN = 3  # ids in a message


def is_task_file(split: str) -> bool:
    """Whether ``split`` names a file of task ids. No split of tau2 ends with ``.txt``."""
    return split.endswith(SUFFIX)


def split_name(split: str) -> str:
    """The name of a split in metrics, stamps and files: of ``tasks/easy.txt`` it is ``easy``."""
    return Path(split).stem if is_task_file(split) else split


def task_ids(split: str, known: Collection[str], key: str = "split") -> tuple[str, ...]:
    """The task ids in the file ``split``, in the file's order. Empty lines and lines that begin with ``#`` are skipped.

    Raises ConfigError for ``key`` when the file cannot be read, is empty, repeats an id, or has one that is not in
    ``known``, the ids of the domain.
    """

    def refused(problem: str, remedy: str) -> ConfigError:
        return ConfigError([Violation(key, split, problem, remedy)])

    try:
        lines = Path(split).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise refused(f"cannot be read: {error}", "Name a text file with one task id on each line") from None
    found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not found:
        raise refused("names no task", "Write one task id on each line")
    if unknown := [name for name in found if name not in known]:
        few = sorted(known)[:_SHOWN]
        raise refused(
            f"{len(unknown)} of {len(found)} ids are not in the domain: {', '.join(unknown[:_SHOWN])}",
            f"Ids of this domain look like: {', '.join(few)}",
        )
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise refused(f"names tasks twice: {', '.join(twice[:_SHOWN])}", "Write each task once")
    return tuple(found)
