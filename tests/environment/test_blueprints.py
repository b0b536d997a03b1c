"""Environments of episodes give the answers of stock tau2, and are freed when the episode ends."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

from tau2_lightning.environment import blueprints
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.blueprints import (
    GC_THRESHOLD,
    Blueprint,
    _collect_less_often,
    blueprint,
    stock_environment,
)
from tau2_lightning.environment.databases.records import Lending
from tau2_lightning.environment.shortcuts import find_tools_directly, lend_to_readers

DOMAINS = [("retail", False), ("airline", False), ("telecom", True), ("telecom", False), ("mock", False)]


def call(name: str, arguments: dict[str, Any], requestor: str = "assistant") -> Any:
    return api.ToolCall(id="1", name=name, arguments=arguments, requestor=requestor)


def answer(environment: Any, message: Any) -> tuple[str | None, bool]:
    got = environment.get_response(message)
    return got.content, got.error


@pytest.mark.parametrize(("domain", "solo"), DOMAINS)
def test_an_environment_goes_with_its_last_reference(domain: str, solo: bool) -> None:
    """An environment must not wait for the garbage collector: with many episodes, dead ones would use the memory."""
    plan = blueprint(domain, solo)
    gc.collect()
    gc.disable()
    try:
        environment = plan.environment()
        parts = [weakref.ref(environment), weakref.ref(environment.tools)]
        environment.get_response(call("transfer_to_human_agents", {"summary": "x"}))
        del environment
        assert [part() for part in parts] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize(("before", "after"), [(700, GC_THRESHOLD), (50_000, 50_000), (0, 0)])
def test_garbage_is_looked_for_less_often_unless_someone_chose(before: int, after: int) -> None:
    kept = gc.get_threshold()
    try:
        gc.set_threshold(before, 7, 8)
        _collect_less_often()
        assert gc.get_threshold() == (after, 7, 8)
    finally:
        gc.set_threshold(*kept)


@pytest.mark.parametrize(("domain", "solo"), DOMAINS)
def test_unknown_tools_and_odd_names_are_answered_as_tau2_does(domain: str, solo: bool) -> None:
    ours, stock = blueprint(domain, solo).environment(), stock_environment(domain, solo)
    for name in ("nope", "", "use_tool", "get_db_hash", "__init__", "has_tool", "db"):
        for requestor in ("assistant", "user"):
            message = call(name, {}, requestor)
            assert answer(ours, message) == answer(stock, message)
            assert answer(ours, message)[1]
    for toolkit, stocks in ((ours.tools, stock.tools), (ours.user_tools, stock.user_tools)):
        if stocks is not None:
            assert all(toolkit.has_tool(name) for name in stocks.tools)
            assert not toolkit.has_tool("nope") and not toolkit.has_tool("use_tool")


def test_a_record_is_spelled_out_anew_once_it_has_changed() -> None:
    """Episodes share the cached text of a shared record; an episode that changes the record gets a new text."""
    stock, first, second = stock_environment("retail", False), *(blueprint("retail", False).environment() for _ in "12")
    order = next(number for number, order in stock.tools.db.orders.items() if order.status == "pending")
    read = call("get_order_details", {"order_id": order})
    assert answer(first, read) == answer(second, read) == answer(stock, read)
    assert first.get_response(read).content is second.get_response(read).content
    cancel = call("cancel_pending_order", {"order_id": order, "reason": "no longer needed"})
    cancelled = answer(first, cancel)
    assert cancelled == answer(stock, cancel) and not cancelled[1]
    changed = answer(first, read)
    assert changed == answer(stock, read) != answer(second, read)


@pytest.mark.parametrize(("domain", "solo"), [("retail", False), ("airline", False), ("telecom", True)])
def test_databases_are_shared_until_touched(domain: str, solo: bool) -> None:
    """The user's database is never shared: each episode has its own."""
    plan = blueprint(domain, solo)
    assert plan.shared is not None
    first, second = plan.environment(), plan.environment()
    assert plan.shared.fingerprint(first.tools.db) == plan.shared.fingerprint(second.tools.db) == ()
    if domain == "telecom":
        assert first.tools.db.lines[0] is first.tools.db.lines[0] is not second.tools.db.lines[0]
        assert first.user_tools.db is not second.user_tools.db and first.user_tools.db.device is not None
        first.user_tools.db.device.battery_level = 3
        first.tools.db.lines[0].roaming_enabled ^= True
        assert second.user_tools.db.device.battery_level != 3
        assert plan.shared.fingerprint(first.tools.db) != plan.shared.fingerprint(second.tools.db)
        assert first.tools.id_generator is not second.tools.id_generator


def test_telecoms_sync_shares_what_it_reads_and_owns_what_it_writes() -> None:
    """A bill that the user pays changes the records of this episode only."""
    ours, stock = blueprint("telecom", False).environment(), stock_environment("telecom", False)
    shared = blueprint("telecom", False).shared
    assert shared is not None
    pristine, number = shared.fields["lines"].records, stock.tools.db.lines[1].phone_number
    for environment in (ours, stock):
        environment.user_tools.db.surroundings.phone_number = number
        environment.sync_tools()
    assert all(mine is pristine[place] for place, mine in enumerate(list.__iter__(ours.tools.db.lines)))
    customer, line = stock.tools.get_customer_by_phone(number), stock.tools.db.lines[1].line_id
    for environment in (ours, stock):
        environment.tools.suspend_line_for_overdue_bill(customer.customer_id, line, "B99", contract_ended=False)
    ask = call("send_payment_request", {"customer_id": customer.customer_id, "bill_id": "B99"})
    for message in (ask, call("make_payment", {}, "user")):
        assert answer(ours, message) == answer(stock, message)
        assert not answer(ours, call("get_details_by_id", {"id": "B99"}))[1]
    assert ours.tools.get_db_hash() == stock.tools.get_db_hash()
    assert [bill.status.value for bill in ours.tools.db.bills if bill.bill_id == "B99"] == ["Paid"]
    blueprint("telecom", False).verify_pristine()


def test_a_toolkit_that_finds_records_its_own_way_is_copied_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A toolkit may hold references to records of its database; in a copy they must point to the copied database."""
    environment = stock_environment("telecom", False)
    environment.tools.by_number = {line.phone_number: line for line in environment.tools.db.lines}
    monkeypatch.setattr(blueprints, "stock_environment", lambda *_: environment)
    plan = Blueprint("own", False)
    own = plan.environment()
    assert plan.shared is None and own.tools.db is not environment.tools.db
    assert own.tools.by_number[own.tools.db.lines[2].phone_number] is own.tools.db.lines[2]


def test_toolkits_with_ways_of_their_own_keep_them() -> None:
    class Own(api.ToolKitBase):
        def use_tool(self, tool_name: str, **kwargs: Any) -> str:
            return f"mine: {tool_name}"

    toolkit = Own()
    find_tools_directly(toolkit)
    assert toolkit.use_tool("x") == "mine: x" and not vars(toolkit).keys() & {"use_tool", "has_tool"}
    lend_to_readers(toolkit, Lending())
    assert toolkit.use_tool("x") == "mine: x" and "use_tool" in vars(toolkit)


def test_environments_with_words_of_their_own_keep_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment may give another text each time, so its texts must not be cached."""

    class Own(api.Environment):
        said = 0

        @classmethod
        def to_json_str(cls, resp: Any) -> str:
            cls.said += 1
            return f"{cls.said}"

    environment = stock_environment("retail", False)
    environment.__class__ = Own
    monkeypatch.setattr(blueprints, "stock_environment", lambda *_: environment)
    own = Blueprint("own", False).environment()
    read = call("get_order_details", {"order_id": next(iter(environment.tools.db.orders))})
    assert [answer(own, read)[0] for _ in range(3)] == ["1", "2", "3"]
