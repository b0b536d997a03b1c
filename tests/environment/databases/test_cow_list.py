"""Lists that copy a record when it is read behave as lists of private records, and report their changes."""

from __future__ import annotations

import copy
import json
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tau2_lightning.environment.databases.copy_on_write import SharedDatabase
from tau2_lightning.environment.databases.cow_list import CowList
from tau2_lightning.environment.databases.records import Baseline, Lending


class Record(BaseModel):
    name: str
    tags: list[str] = []


class Listed(BaseModel):
    records: list[Record]


SIZE = 6


def pristine(size: int = SIZE) -> list[Record]:
    return [Record(name=f"n{i}", tags=["a"]) for i in range(size)]


def cow(records: list[Record] | None = None, lending: Lending | None = None) -> CowList:
    return CowList(Baseline(dict(enumerate(records or pristine()))), lending or Lending())


def walk_and_cut(target: Any, index: int) -> None:
    """Remove an element during a loop, which moves the others: the loop may never give out a shared record."""
    for record in target:
        if record.name == f"n{index}":
            target.remove(record)
        else:
            record.tags.append("w")


def find(target: Any, index: int) -> None:
    for record in target:
        if record.name == f"n{index}":
            record.name = "found"
            return


# Operations of tools on a list of records; each takes an index.
OPERATIONS: dict[str, Callable[[Any, int], Any]] = {
    "find": find,
    "walk and cut": walk_and_cut,
    "mutate": lambda x, i: setattr(x[i], "name", "changed"),
    "from the end": lambda x, i: x[-1 - i].tags.append("e"),
    "slice": lambda x, i: [r.tags.append("s") for r in x[i::2]],
    "backwards": lambda x, i: [r.tags.append("r") for r in list(reversed(x))[:i]],
    "append": lambda x, i: x.append(Record(name="new")),
    "insert": lambda x, i: x.insert(i, Record(name="inserted")),
    "extend": lambda x, i: x.extend([Record(name="more")] * 2),
    "set": lambda x, i: x.__setitem__(i, Record(name="set")),
    "set slice": lambda x, i: x.__setitem__(slice(i, i + 2), [Record(name="part")]),
    "delete": lambda x, i: x.__delitem__(i),
    "pop": lambda x, i: x.append(x.pop(i)),
    "popped": lambda x, i: x.pop(i).tags.append("p"),
    "swap": lambda x, i: x.append(x[0]),
    "sort": lambda x, i: x.sort(key=lambda r: (len(r.tags), r.name), reverse=True),
    "sorted": lambda x, i: [r.tags.append("o") for r in sorted(x, key=lambda r: r.name)[:i]],
    "reverse": lambda x, i: x.reverse(),
    "clear": lambda x, i: x.clear() if i == 5 else None,
    "double": lambda x, i: x.__imul__(2) if len(x) < 8 else None,
    "filter": lambda x, i: x.__setitem__(slice(None), [r for r in x if r.name != f"n{i}"]),
    "max": lambda x, i: max(x, key=lambda r: r.name).tags.append("m"),
    "of a copy": lambda x, i: x.copy()[i].tags.append("c"),
    "of a sum": lambda x, i: ([*x][:1] + x)[i].tags.append("+"),
    "of a product": lambda x, i: (x * 2)[i].tags.append("*"),
    "of a deep copy": lambda x, i: copy.deepcopy(x)[i].tags.append("d"),
}  # fmt: skip
STEPS = st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.integers(0, SIZE - 1)), max_size=10)


def act(target: Any, steps: list[tuple[str, int]]) -> list[str]:
    """Do the steps and return the errors that they raised."""
    raised = []
    for name, index in steps:
        try:
            OPERATIONS[name](target, index)
        except (IndexError, ValueError) as error:
            raised.append(f"{name}: {error}")
    return raised


@given(STEPS)
@settings(max_examples=300, deadline=None)
def test_any_operations_leave_what_they_leave_in_a_plain_list(steps: list[tuple[str, int]]) -> None:
    records = pristine()
    ours, plain = cow(records), copy.deepcopy(records)
    assert act(ours, steps) == act(plain, steps)
    assert records == pristine(), "the baseline must not change"
    assert ours == plain and plain == ours and len(ours) == len(plain) and repr(ours) == repr(plain)
    assert Listed.model_construct(records=ours).model_dump() == Listed.model_construct(records=plain).model_dump()
    assert json.dumps(ours, default=repr) == json.dumps(plain, default=repr)
    # A record that is in two places of one list is in the same two places of the other.
    assert [[a is b for b in ours] for a in ours] == [[a is b for b in plain] for a in plain]


@given(STEPS, STEPS)
@settings(max_examples=300, deadline=None)
def test_fingerprints_are_equal_exactly_when_the_contents_are(first: Any, second: Any) -> None:
    shared = SharedDatabase.of(Listed(records=pristine(30)))
    assert shared is not None
    made = [shared.open(Lending()) for _ in range(2)]
    for database, steps in zip(made, (first, second), strict=True):
        act(database.records, steps)
    prints, dumps = [shared.fingerprint(database) for database in made], [x.model_dump_json() for x in made]
    assert (prints[0] == prints[1]) == (dumps[0] == dumps[1])
    replaced = Listed.model_validate(made[0].model_dump())  # as tau2 updates a database: no record is shared
    assert shared.fingerprint(replaced) == prints[0]


class Both(BaseModel):
    records: list[Record]
    by_name: dict[str, Record]


def test_a_database_of_lists_and_dicts_is_dumped_whole() -> None:
    def fresh() -> Both:
        return Both(records=pristine(20), by_name={record.name: record for record in pristine(20)})

    shared, plain = SharedDatabase.of(fresh()), fresh()
    assert shared is not None
    ours = shared.open(Lending())
    for database in (ours, plain):
        database.records[3].name = "changed"
        del database.records[-1], database.by_name["n2"]
        database.by_name["n4"].tags.append("x")
    assert ours.model_dump() == plain.model_dump() and ours.model_dump_json() == plain.model_dump_json()
    assert ours == plain == copy.deepcopy(ours) == pickle.loads(pickle.dumps(ours))
    assert shared.fingerprint(ours) == shared.fingerprint(plain)
    assert [key for _, key, _ in shared.fingerprint(ours)] == [3, 19, "n2", "n4"]


def test_reading_changes_nothing_and_only_what_was_reached_is_copied() -> None:
    source = pristine()
    records = cow(source)
    assert next(r for r in records if r.name == "n2").tags == ["a"]
    assert [mine is theirs for mine, theirs in zip(list.__iter__(records), source, strict=True)] == [
        False, False, False, True, True, True,
    ]  # fmt: skip
    assert list(records.changes()) == [] and records[1] is records[1]


def test_lending_shares_records_and_only_then() -> None:
    lending, source = Lending(), pristine()
    records = cow(source, lending)
    lending.allowed = True
    assert records[0] is source[0] and next(iter(records)) is source[0] and records[1:3][0] is source[1]
    lending.allowed = False
    assert records[0] is not source[0] and not any(mine is theirs for mine, theirs in zip(records, source, strict=True))


def test_copies_are_plain_and_private() -> None:
    source = pristine()
    records = cow(source)
    for made in (copy.deepcopy(records), pickle.loads(pickle.dumps(records)), records.copy(), copy.copy(records)):
        assert type(made) is list and made == source and not any(a is b for a, b in zip(made, source, strict=True))


def test_what_a_list_refuses_is_refused_in_its_words() -> None:
    for operate in (
        lambda x: operator.add(x, (1,)),
        lambda x: operator.add((1,), x),
        lambda x: x * "a",
        lambda x: x["a"],
        lambda x: x[99],
        lambda x: x.pop(99),
        lambda x: x.remove(1),
        lambda x: hash(x),
        lambda x: [x.clear(), x.pop()],
        lambda x: x.sort(),
    ):
        said = []
        for target in (cow(), pristine()):
            with pytest.raises((TypeError, IndexError, ValueError)) as caught:
                operate(target)
            said.append(str(caught.value).replace("CowList", "list"))
        assert said[0] == said[1]


def test_a_list_that_forgets_to_copy_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control of the first test."""
    monkeypatch.setattr(CowList, "_own", lambda self, index, record: record)
    records = pristine()
    act(cow(records), [("find", 1)])
    assert records != pristine()
