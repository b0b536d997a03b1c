"""An honest agent for airline: asks, reads reservations, searches flights, works out prices, confirms, changes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tau2_lightning.environment.telecom_expert import Act

from .amounts import Terms, named, terms_of, work_out
from .flights import Flight, Routes, flights_of, prices_in, searches
from .seen import Seen
from .turns import NOT_READ, Forgets, LeftOut, Say, Talk, confirmed, handed_over, never_said
from .wanted import Wanted

WHO = "I can help you with that. What is your user id, and what is your reservation id, if you know it?"
ELSE = "Thank you. Is there anything else that I should know about your request, for example what you prefer?"
WHY = "What is the reason for the cancellation?"
HOW_TO_PAY = "Which payment method shall I use? In your profile I see: {methods}."
# From the policy: the date, and prices and compensations in dollars.
TODAY = "2024-05-15"
PER_BAG, PER_INSURED = 50, 30
COMPENSATION = {"delayed": 50, "cancelled": 100}
_USER_ID = re.compile(r"\b[a-z]+_[a-z]+_\d+\b")
_PAYS = re.compile(r"\b(?:pay|payment|card|certificates?|gc|refund\w*)\b", re.IGNORECASE)


class AirlineExpert:
    """Plays one task. ``seen`` is what it has been told and has read; ``forgets`` decides for each change whether it is
    left out; ``routes`` are those of all flights, so that it knows which search to make.
    """

    def __init__(self, wanted: Wanted, seen: Seen, forgets: Forgets, routes: Routes) -> None:
        self._wanted, self._seen, self._forgets, self._routes = wanted, seen, forgets, routes
        self._profile: dict[str, Any] = {}
        self._reservations: dict[str, dict[str, Any]] = {}
        self._paid: dict[str, float] = {}  # for trips that are still to come
        self._prices: dict[Flight, dict[str, float]] = {}
        self._searched: list[Act] = []
        self._heard = ""
        self._asked: set[str] = set()
        self._amounts: list[float] = []

    def talk(self, opening: str) -> Talk[None]:
        """The whole dialogue, after the user's ``opening``."""
        self._heard = opening
        who = yield Say(WHO)
        self._heard += f"\n{who}"
        user_id = _USER_ID.search(who)
        if user_id is None:
            raise LeftOut("the user does not say who it is")
        self._profile = json.loads((yield Act("get_user_details", {"user_id": user_id.group()})))
        yield from self._ask(ELSE)
        yield from self._find_reservations()
        wanted = self._wanted
        acts = [act for act in wanted.writes if not self._forgets(act.name)]
        for act in acts:
            yield from self._change(act)
        facts = yield from work_out(wanted.facts, self._candidates(), self._seen)
        if len(facts) < len(wanted.facts):
            yield from self._read_reservations(self._profile["reservations"])
            facts = yield from work_out(wanted.facts, self._candidates(), self._seen)
        if len(facts) < len(wanted.facts) and len(acts) == len(wanted.writes):
            raise LeftOut(NOT_READ)
        if wanted.transfers:
            yield from handed_over(opening)
        yield Say(self._farewell(facts))

    def _ask(self, question: str) -> Talk[None]:
        if question not in self._asked:
            self._asked.add(question)
            answer = yield Say(question)
            self._heard += f"\n{answer}"

    # -- looking things up --------------------------------------------------------------------------------------------

    def _find_reservations(self) -> Talk[None]:
        """Read the reservations that the user names; else one after the other, until all that matter are found."""
        changed = {act.arguments.get("reservation_id") for act in self._wanted.writes}
        wanted = changed | set(self._wanted.read("get_reservation_details", "reservation_id"))
        every = self._profile["reservations"]
        told = [one for one in every if one in self._heard]
        needed = {one for one in every if one in wanted}
        if not needed and all(act.name != "book_reservation" for act in self._wanted.writes):
            needed = set(told or every)
        if needed <= set(told):
            yield from self._read_reservations(told)
        else:
            last = max(every.index(one) for one in needed)
            yield from self._read_reservations(every[: last + 1])

    def _read_reservations(self, names: Sequence[str]) -> Talk[None]:
        for name in names:
            if name not in self._reservations:
                reservation = json.loads((yield Act("get_reservation_details", {"reservation_id": name})))
                self._reservations[name] = reservation
                if all(flight["date"] >= TODAY for flight in reservation["flights"]):
                    self._paid[name] = sum(payment["amount"] for payment in reservation["payment_history"])

    def _look_up(self, act: Act, trip: Mapping[str, Any], booked: Sequence[Flight], same_cabin: bool) -> Talk[None]:
        """Search the flights of ``act`` between ``trip``'s origin and destination. Those that are ``booked`` have a
        price already if they stay in the ``same_cabin``.
        """
        if not all(self._seen.has(place) for place in (trip["origin"], trip["destination"])):
            yield Act("list_all_airports")
        flights = flights_of(act.arguments["flights"])
        for search in searches(flights, booked, trip["origin"], trip["destination"], self._routes, same_cabin):
            if self._seen.missing(search.arguments):
                yield from self._read_reservations(self._profile["reservations"])
            if missing := self._seen.missing(search.arguments):
                raise never_said([f"{search.name}.{one}" for one in missing])
            if search not in self._searched:
                self._searched.append(search)
                self._prices |= prices_in((yield search), search)

    # -- changing things ----------------------------------------------------------------------------------------------

    def _change(self, act: Act) -> Talk[None]:
        arguments = act.arguments
        reservation = self._reservations.get(str(arguments.get("reservation_id")), {})
        details = ""
        if act.name == "cancel_reservation":
            yield from self._ask(WHY)
        if act.name == "update_reservation_flights":
            same_cabin = arguments["cabin"] == reservation["cabin"]
            yield from self._look_up(act, reservation, flights_of(reservation["flights"]), same_cabin)
            difference = yield from self._difference(act, reservation)
            details = f"\n- price difference: {difference}"
        if act.name == "book_reservation":
            yield from self._look_up(act, arguments, (), same_cabin=False)
            yield from self._price(act)
        if act.name == "send_certificate":
            yield from self._check_delay(arguments["amount"])
        if {"payment_id", "payment_methods"} & set(arguments) and not _PAYS.search(self._heard):
            yield from self._ask(HOW_TO_PAY.format(methods=", ".join(self._profile["payment_methods"])))
        if missing := self._seen.missing(arguments):
            raise never_said([f"{act.name}.{one}" for one in missing])
        result = yield from confirmed(_proposal(act) + details, act)
        if reservation:
            self._reservations[str(arguments["reservation_id"])] = json.loads(result)

    def _difference(self, act: Act, reservation: Mapping[str, Any]) -> Talk[str]:
        old = {flight: entry["price"] for flight, entry in _by_flight(reservation).items()}
        cabin, flights = act.arguments["cabin"], flights_of(act.arguments["flights"])
        kept = cabin == reservation["cabin"]
        new = [old[flight] if kept and flight in old else self._prices[flight][cabin] for flight in flights]
        travellers = len(reservation["passengers"])
        paid = " + ".join(f"{price:g}" for price in old.values())
        expression = f"{travellers} * ({' + '.join(f'{price:g}' for price in new)} - ({paid}))"
        result = yield Act("calculate", {"expression": expression})
        self._amounts.append(float(result))
        return result

    def _price(self, act: Act) -> Talk[None]:
        """Work out what a booking costs and what each payment method pays."""
        arguments = act.arguments
        travellers, bags = len(arguments["passengers"]), arguments["nonfree_baggages"]
        fares = [self._prices[flight][arguments["cabin"]] for flight in flights_of(arguments["flights"])]
        expression = f"{travellers} * ({' + '.join(f'{fare:g}' for fare in fares)})"
        if bags:
            expression += f" + {PER_BAG} * {bags}"
        if arguments["insurance"] == "yes":
            expression += f" + {PER_INSURED} * {travellers}"
        total = float((yield Act("calculate", {"expression": expression})))
        payments = [payment["amount"] for payment in arguments["payment_methods"]]
        for place, amount in enumerate(payments):
            if not self._seen.has(amount):
                others = [total, *payments[:place], *payments[place + 1 :]]
                yield Act("calculate", {"expression": " - ".join(f"{other:g}" for other in others)})

    def _check_delay(self, amount: float) -> Talk[None]:
        """Confirm that a flight is late before it is compensated, and work out for how many travellers."""
        for reservation in reversed(self._reservations.values()):
            flights = list(_by_flight(reservation))
            told = [flight for flight in flights if flight[0] in self._heard]
            for number, date in told or flights:
                status = yield Act("get_flight_status", {"flight_number": number, "date": date})
                per_traveller = COMPENSATION.get(status)
                travellers = len(reservation["passengers"])
                if per_traveller is not None and per_traveller * travellers == amount:
                    yield Act("calculate", {"expression": f"{per_traveller} * {travellers}"})
                    return
        raise LeftOut("no flight of the user is late")

    # -- telling things -----------------------------------------------------------------------------------------------

    def _candidates(self) -> Iterator[Terms]:
        """Sums that a user may ask for, the likely ones first."""
        yield from (terms for expression in self._wanted.sums if (terms := terms_of(expression)) is not None)
        yield self._amounts
        methods = self._profile["payment_methods"].values()
        for source in ("gift_card", "certificate"):
            yield [method["amount"] for method in methods if method["source"] == source]
        bookings = [act.arguments["payment_methods"] for act in self._wanted.writes if act.name == "book_reservation"]
        payments = [payment for booking in bookings for payment in booking]
        for payment_id in dict.fromkeys(payment["payment_id"] for payment in payments):
            yield [payment["amount"] for payment in payments if payment["payment_id"] == payment_id]
        yield list(self._paid.values())

    def _farewell(self, facts: Sequence[str]) -> str:
        results = [self._profile, *self._reservations.values()]
        named_facts = "; ".join(named(fact, results) for fact in facts)
        told = f"Here is what you wanted to know. {named_facts}.\n" if facts else ""
        if self._wanted.writes:
            return f"{told}Your request is done. Goodbye!"
        if told:
            return f"{told}Goodbye!"
        looked_at = "".join(f"\n- {_described(one)}" for one in self._reservations.values())
        return f"I have looked at your reservations:{looked_at}\nI am sorry, our policy does not allow this. Goodbye!"


def _by_flight(reservation: Mapping[str, Any]) -> dict[Flight, Mapping[str, Any]]:
    return dict(zip(flights_of(reservation["flights"]), reservation["flights"], strict=True))


def _described(reservation: Mapping[str, Any]) -> str:
    cabin = reservation["cabin"].replace("_", " ")
    return (
        f"{reservation['reservation_id']}, {reservation['origin']} to {reservation['destination']}: {cabin}, "
        f"booked {reservation['created_at'][:10]}, insurance: {reservation['insurance']}"
    )


def _proposal(act: Act) -> str:
    lines = [f"{act.name.replace('_', ' ').capitalize()}:"]
    for name, value in act.arguments.items():
        entries = value if isinstance(value, list) else [value]
        shown = [" ".join(map(str, entry.values())) if isinstance(entry, dict) else str(entry) for entry in entries]
        lines.append(f"- {name.replace('_', ' ')}: {', '.join(shown)}")
    return "\n".join(lines)
