"""All texts for injected faults of the user, by set.

A set is written after the rules of its time, measured once, and then used to improve them; the file of each set says
what was found at that first sight. To measure texts that no rule has seen, write a new set and measure it before you
change a rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from tests.environment.user_fault_cases.eighth import EIGHTH
from tests.environment.user_fault_cases.fifth import FIFTH
from tests.environment.user_fault_cases.fourth import FOURTH
from tests.environment.user_fault_cases.ninth import NINTH
from tests.environment.user_fault_cases.second import SECOND
from tests.environment.user_fault_cases.seen import SEEN
from tests.environment.user_fault_cases.seventh import SEVENTH
from tests.environment.user_fault_cases.sixth import SIXTH
from tests.environment.user_fault_cases.tenth import TENTH
from tests.environment.user_fault_cases.texts import DEVELOPMENT, Texts
from tests.environment.user_fault_cases.third import THIRD

SETS: Mapping[str, Texts] = {
    "development": DEVELOPMENT,
    "first": SEEN,
    "second": SECOND,
    "third": THIRD,
    "fourth": FOURTH,
    "fifth": FIFTH,
    "sixth": SIXTH,
    "seventh": SEVENTH,
    "eighth": EIGHTH,
    "ninth": NINTH,
    "tenth": TENTH,
}
#: The texts of all sets together.
ALL = Texts(
    **{name: sum((getattr(texts, name) for texts in SETS.values()), ()) for name in (f.name for f in fields(Texts))}
)
