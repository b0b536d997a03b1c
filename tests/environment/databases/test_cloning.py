"""Prepared deep copies are independent and equal to pickled copies, including types and pydantic's bookkeeping."""

from __future__ import annotations

import copy
import enum
import pickle
import threading
from collections import defaultdict
from datetime import date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, PrivateAttr

from tau2_lightning.environment.blueprints import stock_environment
from tau2_lightning.environment.databases.cloning import CannotClone, cloner, snapshot


class Colour(enum.Enum):
    RED = "red"


class Leaf(BaseModel):
    name: str = "leaf"
    day: date = date(2025, 2, 25)
    colour: Colour = Colour.RED
    tags: list[str] = []


class Branch(BaseModel):
    size: float | None = None
    leaves: dict[str, Leaf] = {}
    numbers: set[int] = set()
    when: datetime | None = None


class Box:
    def __init__(self, content: Any) -> None:
        self.content = content


class Secretive(BaseModel):
    _hidden: list[int] = PrivateAttr(default_factory=list)


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")


class Stateful:
    def __init__(self) -> None:
        self.x = 1

    def __getstate__(self) -> dict[str, int]:
        return {"x": 2}


class Slotted:
    __slots__ = ("x",)


def described(value: Any) -> Any:
    """Everything that must be equal in a copy, including types and pydantic's bookkeeping."""
    if isinstance(value, BaseModel):
        fields = {name: described(each) for name, each in value.__dict__.items()}
        return type(value), list(fields.items()), set(value.model_fields_set), value.__pydantic_extra__
    if isinstance(value, dict):
        return type(value), [(key, described(each)) for key, each in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [described(each) for each in value]
    if hasattr(value, "__dict__") and not isinstance(value, enum.Enum | type) and not callable(value):
        return type(value), {name: described(each) for name, each in vars(value).items()}
    return type(value), value


def mutable(value: Any) -> set[int]:
    """The ids of all mutable objects in a value, except pydantic's sets of given fields."""
    found = set()
    if isinstance(value, BaseModel) or (hasattr(value, "__dict__") and not isinstance(value, enum.Enum | type)):
        found |= {id(value), id(value.__dict__)}.union(*map(mutable, value.__dict__.values()))
    elif isinstance(value, dict):
        found |= {id(value)}.union(*map(mutable, value.values()))
    elif isinstance(value, list | set):
        found |= {id(value)}.union(*map(mutable, value))
    return found


LEAVES = st.builds(Leaf, name=st.text(), day=st.dates(), tags=st.lists(st.text())) | st.builds(Leaf)
BRANCHES = st.builds(
    Branch,
    size=st.none() | st.floats(allow_nan=False),
    leaves=st.dictionaries(st.text(), LEAVES),
    numbers=st.sets(st.integers()),
    when=st.none() | st.datetimes(),
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | LEAVES | BRANCHES,
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.builds(Box, inner),
    max_leaves=12,
)


@given(VALUES)
def test_copies_are_equal_and_independent(value: Any) -> None:
    original = pickle.loads(pickle.dumps(value))  # hypothesis may reuse one object in two places
    want = described(original)
    make = snapshot(original)
    first, second = make(), make()
    assert described(first) == described(second) == want
    assert not mutable(first) & mutable(second) and not mutable(first) & mutable(original)


@pytest.mark.parametrize(("domain", "solo"), [("telecom", True), ("telecom", False), ("mock", False)])
def test_environments_of_tau2(domain: str, solo: bool) -> None:
    environment = stock_environment(domain, solo)
    make = cloner(pickle.loads(pickle.dumps(environment)))  # without CannotClone, so the fast path is in use
    first, second = make(), make()
    assert described(first) == described(second) == described(environment)
    assert not mutable(first) & mutable(second)


def test_what_one_copy_is_given_no_other_sees() -> None:
    make = cloner(Branch(leaves={"a": Leaf(name="a", day=date(2025, 1, 1), colour=Colour.RED, tags=["x"])}, size=1.0))
    changed, other = make(), make()
    changed.leaves["a"].tags.append("y")
    changed.leaves["a"].name = "b"
    changed.leaves["c"] = Leaf()
    changed.numbers = {1}  # the field was not given: pydantic records it as given now
    assert other.leaves.keys() == {"a"} and other.leaves["a"].tags == ["x"] and other.leaves["a"].name == "a"
    assert "numbers" in changed.model_fields_set and "numbers" not in other.model_fields_set
    assert "numbers" not in make().model_fields_set


def test_a_default_dict_keeps_its_factory() -> None:
    made = cloner({"counts": defaultdict(int, a=1)})()
    made["counts"]["b"] += 2
    assert made == {"counts": {"a": 1, "b": 2}}


shared: list[int] = [1]


@pytest.mark.parametrize(
    "value",
    [[shared, shared], ([1],), Secretive(), Open(x=1), Stateful(), Slotted(), copy, threading.Lock(), Box(iter([1]))],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_is_refused(value: Any) -> None:
    with pytest.raises(CannotClone):
        cloner(value)


def test_a_snapshot_of_it_is_right_all_the_same() -> None:
    one, other = (made := snapshot([shared, shared]))()
    assert one is other and one == shared and one is not shared and made()[0] is not one
    assert snapshot(Stateful())().x == 2
    with pytest.raises((TypeError, pickle.PicklingError)):
        snapshot(threading.Lock())
    growing = [1]
    make = snapshot(growing)
    growing.append(2)
    assert make() == [1]
