"""Copy-on-write records behave as a dict of private records, and report their changes."""

from __future__ import annotations

import copy
import datetime
import json
import pickle
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from tau2_lightning.environment.databases.copy_on_write import SharedDatabase
from tau2_lightning.environment.databases.cow_dict import CowDict
from tau2_lightning.environment.databases.records import Baseline, Lending


class Record(BaseModel):
    name: str
    tags: list[str] = []


class Base(BaseModel):
    records: dict[str, Record]


class Dated(BaseModel):
    when: datetime.datetime | str


def pristine() -> dict[str, Record]:
    return {f"k{i}": Record(name=f"n{i}", tags=["a"]) for i in range(30)}


def shared_by(database: Any) -> SharedDatabase:
    shared = SharedDatabase.of(database)
    assert shared is not None
    return shared


def cow(records: dict[str, Record] | None = None) -> CowDict:
    return CowDict(Baseline(records or pristine()), Lending())


KEPT = [f"k{i}" for i in range(5)]
KEYS = st.sampled_from([*KEPT, "new"])
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["mutate", "append", "set", "del", "pop", "setdefault", "update", "values", "items", "get"]),
        KEYS,
    ),
    max_size=12,
)


def apply(target: Any, operation: str, key: str) -> None:
    """Do one operation of a tool on a dict of records, copy-on-write or plain."""
    if operation == "mutate" and key in target:
        target[key].name = "changed"
    elif operation == "append" and key in target:
        target[key].tags.append("b")
    elif operation == "set":
        target[key] = Record(name="set")
    elif operation == "del" and key in target:
        del target[key]
    elif operation == "pop":
        target.pop(key, None)
    elif operation == "setdefault":
        target.setdefault(key, Record(name="default")).tags.append("c")
    elif operation == "update":
        target.update({key: Record(name="updated")})
    elif operation == "values":
        for record in target.values():
            record.tags.append("v")
            break
    elif operation == "items":
        for name, record in target.items():
            if name == key:
                record.name = "item"
    elif operation == "get":
        record = target.get(key)
        if record is not None:
            record.tags.clear()


@given(OPERATIONS)
@settings(max_examples=120, deadline=None)
def test_any_operations_leave_what_they_leave_in_a_plain_dict(operations: list[tuple[str, str]]) -> None:
    records = pristine()
    ours, plain = cow(records), copy.deepcopy(records)
    for operation, key in operations:
        apply(ours, operation, key)
        apply(plain, operation, key)
    same_as(ours, plain)
    assert records == pristine(), "the baseline must not change"


def same_as(ours: CowDict, plain: dict[str, Record]) -> None:
    """Check that both have the same content and order, in every way of reading them."""
    keys = list(plain)
    assert list(ours) == list(ours.keys()) == list(ours.contents()) == list(reversed(list(reversed(ours)))) == keys
    assert len(ours) == len(plain) and bool(ours) == bool(plain)
    assert [key in ours for key in (*KEPT, "new")] == [key in plain for key in (*KEPT, "new")]
    assert ours == plain and plain == ours and ours == copy.copy(ours) and ours != {**plain, "x": 1}
    assert repr(ours) == repr(plain) and json.dumps(dict(ours), default=repr) == json.dumps(plain, default=repr)
    assert json.dumps(ours, default=repr) == json.dumps(plain, default=repr)
    assert {**ours} == plain and ours | {"x": 1} == plain | {"x": 1} and {"x": 1} | ours == {"x": 1} | plain
    assert [(k, v.model_dump()) for k, v in ours.items()] == [(k, v.model_dump()) for k, v in plain.items()]
    assert [v.model_dump() for v in ours.values()] == [v.model_dump() for v in plain.values()]


@given(OPERATIONS, OPERATIONS)
@settings(max_examples=120, deadline=None)
def test_fingerprints_are_equal_exactly_when_the_contents_are(first: Any, second: Any) -> None:
    shared = shared_by(Base(records=pristine()))
    made = []
    for operations in (first, second):
        database = shared.open(Lending())
        for operation, key in operations:
            apply(database.records, operation, key)
        made.append(database)
    contents = [{k: v.model_dump_json() for k, v in database.records.items()} for database in made]
    assert (shared.fingerprint(made[0]) == shared.fingerprint(made[1])) == (contents[0] == contents[1])
    replaced = shared.open(Lending())
    replaced.records = copy.deepcopy(made[0].records)
    assert shared.fingerprint(replaced) == shared.fingerprint(made[0])


def test_values_of_another_type_are_a_change() -> None:
    records = cow()
    records["k0"].tags.append(1)
    other = cow()
    other["k0"].tags.append("1")
    assert list(records.changes()) != list(other.changes())


def test_reading_and_rewriting_the_same_is_no_change() -> None:
    records = cow()
    records["k0"].name = "n0"
    assert records["k1"].tags == ["a"]
    assert list(records.changes()) == []


def test_lending_shares_records_and_only_then() -> None:
    lending = Lending()
    source = pristine()
    records = CowDict(Baseline(source), lending)
    lending.allowed = True
    assert records["k0"] is source["k0"] and next(iter(records.values())) is source["k0"]
    lending.allowed = False
    assert records["k0"] is not source["k0"] and records["k0"] is records["k0"]
    assert not any(value is source[key] for key, value in records.items())


def test_copies_are_plain_and_private() -> None:
    records = cow()
    for made in (copy.deepcopy(records), pickle.loads(pickle.dumps(records)), records.copy()):
        assert type(made) is dict and made["k3"] == records["k3"]


def test_dict_odds_and_ends() -> None:
    records = cow()
    key, _ = records.popitem()
    assert key == "k29" and key not in records
    with pytest.raises(KeyError):
        records.pop("nope")
    with pytest.raises(KeyError):
        records["nope"]
    records |= {"new": Record(name="x")}
    records.clear()
    assert not records and len(list(records.changes())) == 30
    with pytest.raises(KeyError):
        records.popitem()


def test_a_database_is_dumped_whole_and_equals_one_that_shares_nothing() -> None:
    plain = Base(records=pristine())
    shared = shared_by(Base(records=pristine())).open(Lending())
    assert isinstance(shared, Base) and type(shared).__name__ == "Base" and shared.model_fields_set == {"records"}
    shared.records["k1"].name, plain.records["k1"].name = "changed", "changed"
    del shared.records["k2"], plain.records["k2"]
    assert shared.model_dump() == plain.model_dump() and shared.model_dump_json() == plain.model_dump_json()
    assert shared == plain and shared == copy.deepcopy(shared) and shared != Base(records={})
    unpickled = pickle.loads(pickle.dumps(shared))
    assert type(unpickled) is Base and unpickled == plain
    assert type(shared).model_validate(shared.model_dump()) == plain
    shared.records = {}
    assert shared.model_dump() == {"records": {}}


def test_a_new_one_holds_nothing() -> None:
    """The size must not grow with the database, because many episodes run at once."""
    small, large = (cow({f"k{i}": Record(name="x") for i in range(n)}) for n in (20, 20_000))
    assert sys.getsizeof(large) == sys.getsizeof(small)
    assert large["k7"].name == "x" and dict.__len__(large) == 1


def test_dates_are_told_from_their_texts() -> None:
    """tau2 hashes ``str(moment)``, which differs from pydantic's dump of a datetime."""
    moment = datetime.datetime(2025, 1, 2, 3, 4, 5)
    records = CowDict(Baseline({"k": Dated(when=moment)}), Lending())
    records["k"].when = moment.isoformat()
    assert [key for key, _ in records.changes()] == ["k"]
    records["k"].when = str(moment)  # tau2 hashes this text and the datetime alike
    assert list(records.changes()) == []


def test_small_or_odd_databases_are_not_shared() -> None:
    class Odd(BaseModel):
        records: dict[str, Record]
        count: int = 1

    assert SharedDatabase.of(Base(records={"a": Record(name="x")})) is None
    assert SharedDatabase.of(Odd(records=pristine())) is None

    class Hidden(Record):  # a local class, which pickle cannot find, with a ``__getstate__`` of its own
        def __getstate__(self) -> dict[Any, Any]:
            return super().__getstate__()

    assert SharedDatabase.of(Base(records={f"k{i}": Hidden(name="x") for i in range(30)})) is None
    assert SharedDatabase.of(None) is None and SharedDatabase.of(object()) is None
    shared = shared_by(Base(records=pristine()))
    database = shared.open(Lending())
    database.records = {}
    assert len(shared.fingerprint(database)) == 30


def test_digests_are_equal_exactly_when_the_records_are() -> None:
    one, other, changed = (shared_by(Base(records=pristine())) for _ in range(3))
    assert one.digest == other.digest == changed.digest == changed.computed_digest()
    changed.fields["records"].records["k3"].name = "x"
    assert changed.computed_digest() != changed.digest
