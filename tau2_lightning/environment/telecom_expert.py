"""A scripted telecom support agent for solo mode: check, fix what the check shows, and so on until done.

Gold actions cannot be imitated: they contain no reads, so nothing that an agent sees predicts them. Here every decision
follows from the ticket and the newest check. The script solves all of tau2's telecom tasks. Customer and line belong
to the phone number in the ticket; all of tau2's tasks concern one customer, so an imitator can memorise the ids.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

# Tools that repair something; a demonstration may leave them out. Checks are never left out.
FIXES = frozenset(
    {
        "toggle_airplane_mode",
        "reseat_sim_card",
        "reset_apn_settings",
        "send_payment_request",
        "enable_roaming",
        "toggle_roaming",
        "toggle_data",
        "refuel_data",
        "set_network_mode_preference",
        "toggle_data_saver_mode",
        "disconnect_vpn",
        "toggle_wifi_calling",
        "grant_app_permission",
    }
)
# A step that makes sense only after the fix before it.
DEPENDANTS = {"reset_apn_settings": "reboot_device", "send_payment_request": "make_payment"}
CONTRACTS_END_BEFORE = "2025-02-25"  # the fixed "today" of tau2's telecom domain
REFUEL_GB = 2.0


@dataclass(frozen=True)
class Act:
    """One tool call."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


Plan = Generator[Act, str, None]


def expert(ticket: str, customer_id: str, line_id: str) -> Plan:
    """A generator that yields the next act and receives the text of its result. Returns when only ``done`` is left."""
    return troubleshoot("phone service" in ticket, "MMS" in ticket, "abroad" in ticket, customer_id, line_id)


def troubleshoot(service: bool, mms: bool, abroad: bool, customer_id: str, line_id: str) -> Plan:
    """The plan for a phone without ``service``, that sends no ``mms``, or else has no or slow data. ``abroad``: the
    user is. See `expert`.
    """
    network = yield Act("check_network_status")
    if "Airplane Mode: ON" in network:
        yield Act("toggle_airplane_mode")
    if not service and "Mobile Data Enabled: No" in network:
        yield Act("toggle_data")
    if not service and abroad and "Data Roaming Enabled: No" in network:
        yield Act("toggle_roaming")
    if (yield from _sim_is_locked()):
        yield Act("transfer_to_human_agents", {"summary": "SIM locked"})
        return
    apn = yield Act("check_apn_settings")
    if "Not Set" in apn or "broken" in apn.lower():
        yield Act("reset_apn_settings")
        yield Act("reboot_device")
    line = json.loads((yield Act("get_details_by_id", {"id": line_id})))
    if line["status"] != "Active":
        if line["contract_end_date"] < CONTRACTS_END_BEFORE:
            yield Act("transfer_to_human_agents", {"summary": "contract ended"})
            return
        yield from _pay_overdue_bills(customer_id)
        yield Act("resume_line", {"customer_id": customer_id, "line_id": line_id})
        yield Act("reboot_device")
    if service:
        return
    ids = {"customer_id": customer_id, "line_id": line_id}
    if abroad and not line["roaming_enabled"]:
        yield Act("enable_roaming", ids)
    usage = json.loads((yield Act("get_data_usage", ids)))
    if float(usage["data_used_gb"]) >= float(usage["data_limit_gb"]) + float(usage["data_refueling_gb"]):
        yield Act("refuel_data", {**ids, "gb_amount": REFUEL_GB})
    if "4g_5g" not in (yield Act("check_network_mode_preference")):
        yield Act("set_network_mode_preference", {"mode": "4g_5g_preferred"})
    yield from _fix_messaging() if mms else _fix_data()


def _sim_is_locked() -> Generator[Act, str, bool]:
    sim = yield Act("check_sim_status")
    if "No SIM" in sim:
        yield Act("reseat_sim_card")
        sim = yield Act("check_sim_status")
    return "locked" in sim.lower()


def _pay_overdue_bills(customer_id: str) -> Plan:
    bills = json.loads((yield Act("get_bills_for_customer", {"customer_id": customer_id})))
    for bill in bills:
        if bill["status"] == "Overdue":
            yield Act("send_payment_request", {"customer_id": customer_id, "bill_id": bill["bill_id"]})
            yield Act("make_payment")


def _fix_data() -> Plan:
    if "is ON" in (yield Act("check_data_restriction_status")):
        yield Act("toggle_data_saver_mode")
    if "ON" in (yield Act("check_vpn_status")):
        yield Act("disconnect_vpn")


def _fix_messaging() -> Plan:
    if "ON" in (yield Act("check_wifi_calling_status")):
        yield Act("toggle_wifi_calling")
    granted = yield Act("check_app_permissions", {"app_name": "messaging"})
    for permission in ("sms", "storage"):
        if permission not in granted:
            yield Act("grant_app_permission", {"app_name": "messaging", "permission": permission})


def forgetful(plan: Plan, forgets: Callable[[str], bool]) -> Plan:
    """``plan`` without the fixes for which ``forgets(tool name)`` is true, and without the steps that depend on them.

    The plan continues as if they had been made: such an expert knows less, but each of its acts still follows from what
    it has seen.
    """
    result: str | None = None
    dropped: str | None = None
    while True:
        try:
            act = next(plan) if result is None else plan.send(result)
        except StopIteration:
            return
        if act.name in FIXES and forgets(act.name):
            result, dropped = "", DEPENDANTS.get(act.name)
        elif act.name == dropped:
            result, dropped = "", None
        else:
            result = yield act
