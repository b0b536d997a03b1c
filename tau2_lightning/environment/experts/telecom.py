"""An honest agent for telecom with two in control: the solo expert's plan, with the phone in the user's hands."""

from __future__ import annotations

import json
import re
from typing import Any

from tau2_lightning.environment.telecom_expert import REFUEL_GB, Act, forgetful, troubleshoot

from .seen import Seen
from .turns import HOLD_ON, TRANSFER, Forgets, LeftOut, Say, Talk, confirmed

WHO = "I can help you with that. First I need to find your account: what is your name, and what is your phone number?"
HOW_MUCH = "You have used up your data. How much data do you want to refuel? 2 GB are the most, at ${price} per GB."
_PHONE = re.compile(r"\b\d{3}-\d{3}-\d{4}\b")
# How the user sees that the problem is gone.
_PROOF = {"service": "check_status_bar", "data": "run_speed_test", "mms": "can_send_mms"}
_NETWORK_MODE = "set_network_mode_preference"


class TelecomExpert:
    """Plays one task. ``seen`` is what it has been told and has read; ``forgets`` decides for each fix whether it is
    left out; ``user_tools`` are the names of the tools that the user has.
    """

    def __init__(self, seen: Seen, forgets: Forgets, user_tools: frozenset[str]) -> None:
        self._seen, self._forgets, self._user_tools = seen, forgets, user_tools
        self._line: dict[str, Any] = {}
        self._bill_id = ""

    def talk(self, opening: str) -> Talk[None]:
        """The whole dialogue, after the user's ``opening``."""
        who = yield Say(WHO)
        phone = _PHONE.search(who)
        if phone is None:
            raise LeftOut("the user does not say who it is")
        customer = json.loads((yield Act("get_customer_by_phone", {"phone_number": phone.group()})))
        for line_id in customer["line_ids"]:
            self._line = json.loads((yield Act("get_details_by_id", {"id": line_id})))
            if self._line["phone_number"] == phone.group():
                break
        problem = "service" if "No Service" in opening else "mms" if "MMS" in opening else "data"
        plan = troubleshoot(
            service=problem == "service",
            mms=problem == "mms",
            abroad="abroad" in who,
            customer_id=customer["customer_id"],
            line_id=self._line["line_id"],
        )
        plan = forgetful(plan, self._forgets)
        act, transferred = next(plan, None), False
        while act is not None:
            transferred = act.name == TRANSFER
            result = yield from self._do(act)
            try:
                act = plan.send(result)
            except StopIteration:
                act = None
        if transferred:
            yield Say(HOLD_ON)
        yield from self._ask_to_run(Act(_PROOF[problem]))
        yield Say("Thank you for your patience. Goodbye!")

    def _do(self, act: Act) -> Talk[str]:
        """Do what the solo expert would do, or have the user do it. Returns the result."""
        if act.arguments == {"id": self._line["line_id"]}:
            return json.dumps(self._line)  # read already, and nothing has changed it
        if act.name in self._user_tools:
            return (yield from self._on_the_phone(act))
        if missing := self._seen.missing(act.arguments):
            raise LeftOut(f"nobody mentions {', '.join(missing)}")
        if act.name == "refuel_data":
            plan = json.loads((yield Act("get_details_by_id", {"id": self._line["plan_id"]})))
            price = plan["data_refueling_price_per_gb"]
            yield Say(HOW_MUCH.format(price=price))
            proposal = f"I will add {REFUEL_GB} GB to your line for ${price} per GB, ${REFUEL_GB * price:.2f} in all."
            return (yield from confirmed(proposal, act))
        if act.name == "enable_roaming":
            return (yield from confirmed("I will enable roaming for your line, at no cost for you.", act))
        if act.name == "resume_line":
            return (yield from confirmed("Your bill is paid. I will resume your suspended line.", act))
        if act.name == "send_payment_request":
            self._bill_id = str(act.arguments["bill_id"])
            proposal = (
                f"Your line is suspended, because bill {self._bill_id} is overdue. I will send you a request to pay it."
            )
            result = yield from confirmed(proposal, act)
            yield from self._ask_to_run(Act("check_payment_request"))
            return result
        return (yield act)

    def _on_the_phone(self, act: Act) -> Talk[str]:
        if act.name == _NETWORK_MODE and self._seen.missing(act.arguments):
            # The phone lists its modes when it does not know one.
            yield from self._ask_to_run(Act(act.name, {"mode": "5G"}))
        if missing := self._seen.missing(act.arguments):
            raise LeftOut(f"nobody mentions {', '.join(missing)}")
        result = yield from self._ask_to_run(act)
        if act.name == "make_payment":
            yield Act("get_details_by_id", {"id": self._bill_id})
        return result

    def _ask_to_run(self, act: Act) -> Talk[str]:
        return (yield Say(f"Please run {act.name}({json.dumps(dict(act.arguments))}) and tell me what you see."))
