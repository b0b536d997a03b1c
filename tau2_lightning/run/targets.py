"""What the configuration may name in ``_target_``: it is looked at before anything of it is called."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from hydra.utils import get_object

from tau2_lightning.errors import Violation

TARGET = "_target_"


def located(target: str) -> Any:
    """What the dotted name ``target`` names; its module is imported, and nothing is called.

    Raises ImportError for a name that leads to a program's ``__main__``, which an import would run, and for a module
    that ends the process; and whatever else the import raises.
    """
    if "__main__" in target.split("."):
        raise ImportError("a __main__ is a program: to import it would run it")
    try:
        return get_object(target)
    except SystemExit as error:
        raise ImportError("importing it would end this process") from error


def makes(found: Any, cls: type[Any]) -> bool:
    """Whether ``found`` is a subclass of ``cls``, or a function that is declared to return one.

    Any other function is not called: a name may lead to ``os.system`` as well.
    """
    if isinstance(found, type):
        return issubclass(found, cls)
    try:
        returned = get_type_hints(found).get("return")
    except Exception:  # noqa: BLE001  # annotations of a user's may name anything, or nothing
        return False
    return callable(found) and isinstance(returned, type) and issubclass(returned, cls)


def refused_values(key: str, value: Any) -> Iterator[Violation]:
    """The violations of the values below ``key``: a ``_target_`` inside an argument, which would make another object,
    and numbers that are not finite."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == TARGET:
                problem = "is inside an argument, where nothing is made"
                yield Violation(f"{key}.{name}", item, problem, "Give plain values, and make objects in your own class")
            else:
                yield from refused_values(f"{key}.{name}", item)
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from refused_values(f"{key}.{number}", item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield Violation(key, value, "is not a finite number", "Give a finite number")


def refused_arguments(key: str, entry: Mapping[str, Any]) -> list[Violation]:
    """`refused_values` of the arguments of an entry, which has a ``_target_`` of its own."""
    return [one for name, item in entry.items() if name != TARGET for one in refused_values(f"{key}.{name}", item)]
