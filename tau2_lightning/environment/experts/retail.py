"""An honest agent for retail: finds the account, reads orders and products, has each change confirmed, makes it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from tau2_lightning.environment.telecom_expert import Act

from .amounts import Terms, named, subsets, terms_of, work_out
from .seen import Seen
from .turns import NOT_READ, Forgets, LeftOut, Say, Talk, confirmed, handed_over, never_said
from .wanted import Wanted

WHO = (
    "I can help you with that. First I need to find your account: what is your email address? If you do not know it, "
    "please tell me your first name, your last name and your zip code."
)
WHY = "What is the reason for the cancellation: is the order 'no longer needed', or was it 'ordered by mistake'?"
HOW_TO_PAY = (
    "Which payment method shall I use for the price difference or the refund? In your profile I see: {methods}."
)
ELSE = "Is there anything else that I should know about your request?"
_EMAIL = re.compile(r"[\w.]+@[\w.]+\w")
_USER_ID = re.compile(r"\b([a-z]+)_([a-z]+)_\d+\b")
_NAME = re.compile(r"\b(?:am|name is|called|user|I'm)\s+([A-Z][a-z]+) ([A-Z][a-z]+)\b")
_ZIP = re.compile(r"\b\d{5}\b")


class RetailExpert:
    """Plays one task. ``seen`` is what it has been told and has read; ``forgets`` decides for each change whether it is
    left out.
    """

    def __init__(self, wanted: Wanted, seen: Seen, forgets: Forgets) -> None:
        self._wanted, self._seen, self._forgets = wanted, seen, forgets
        self._profile: dict[str, Any] = {}
        self._orders: dict[str, dict[str, Any]] = {}
        self._products: dict[str, dict[str, Any]] = {}
        self._asked: set[str] = set()
        self._sums: list[Terms] = []

    def talk(self, opening: str) -> Talk[None]:
        """The whole dialogue, after the user's ``opening``."""
        user_id = yield from self._identify()
        self._profile = json.loads((yield Act("get_user_details", {"user_id": user_id})))
        wanted = self._wanted
        yield from self._find_orders(opening)
        for product_id in dict.fromkeys(wanted.read("get_product_details", "product_id")):
            yield from self._read_product(product_id)
        acts = [act for act in wanted.writes if not self._forgets(act.name)]
        for act in acts:
            yield from self._change(act)
        facts = yield from self._work_out()
        if len(facts) < len(wanted.facts):
            yield from self._read_orders(self._profile["orders"])
            yield from self._read_products_in(opening)
            facts = yield from self._work_out()
        if len(facts) < len(wanted.facts) and len(acts) == len(wanted.writes):
            raise LeftOut(NOT_READ)
        if wanted.transfers:
            yield from handed_over(opening)
        yield Say(self._farewell(facts))

    # -- looking things up --------------------------------------------------------------------------------------------

    def _identify(self) -> Talk[str]:
        who = yield Say(WHO)
        for email in _EMAIL.findall(who):
            if not _failed(user_id := (yield Act("find_user_id_by_email", {"email": email}))):
                return user_id
        names = [(first.capitalize(), last.capitalize()) for first, last in _USER_ID.findall(who)] or _NAME.findall(who)
        for first, last in dict.fromkeys(names):
            for place in _ZIP.findall(who):
                arguments = {"first_name": first, "last_name": last, "zip": place}
                if not _failed(user_id := (yield Act("find_user_id_by_name_zip", arguments))):
                    return user_id
        raise LeftOut("the user does not say who it is")

    def _find_orders(self, opening: str) -> Talk[None]:
        """Read the orders that the user names; else one after the other, until all that matter are found."""
        changed = {act.arguments.get("order_id") for act in self._wanted.writes}
        wanted = changed | set(self._wanted.read("get_order_details", "order_id"))
        every = self._profile["orders"]
        told = [one for one in every if one.strip("#W") in opening]
        needed = {one for one in every if one in wanted}
        if not needed and not self._wanted.writes:
            needed = set(told or every)
        if needed <= set(told):
            yield from self._read_orders(told)
        else:
            last = max(every.index(one) for one in needed)
            yield from self._read_orders(every[: last + 1])

    def _read_orders(self, names: Sequence[str]) -> Talk[None]:
        for name in names:
            if name not in self._orders:
                self._orders[name] = json.loads((yield Act("get_order_details", {"order_id": name})))

    def _read_product(self, product_id: str) -> Talk[None]:
        if product_id in self._products:
            return
        if not self._seen.has(product_id):
            yield Act("list_all_product_types")
        if self._seen.has(product_id):
            result = yield Act("get_product_details", {"product_id": product_id})
            self._products[product_id] = json.loads(result)

    def _read_products_in(self, text: str) -> Talk[None]:
        """Read the types of product that ``text`` names."""
        types = json.loads((yield Act("list_all_product_types")))
        for name, product_id in types.items():
            if _plain(name) in _plain(text):
                yield from self._read_product(product_id)

    # -- changing things ----------------------------------------------------------------------------------------------

    def _change(self, act: Act) -> Talk[None]:
        arguments, order = act.arguments, self._orders.get(str(act.arguments.get("order_id")), {})
        for item in _chosen(order, arguments.get("item_ids", ())) if "new_item_ids" in arguments else ():
            yield from self._read_product(item["product_id"])
        if "reason" in arguments:
            yield from self._ask(WHY)
        if "payment_method_id" in arguments:
            methods = ", ".join(self._profile["payment_methods"])
            yield from self._ask(HOW_TO_PAY.format(methods=methods))
        if self._seen.missing(arguments):
            yield from self._read_orders(self._profile["orders"])
        if self._seen.missing(arguments):
            yield from self._ask(ELSE)
        if missing := self._seen.missing(arguments):
            raise never_said([f"{act.name}.{one}" for one in missing])
        yield from confirmed(self._proposal(act, order), act)
        self._sums.append(self._refund(act, order))

    def _ask(self, question: str) -> Talk[None]:
        if question not in self._asked:
            self._asked.add(question)
            yield Say(question)

    def _proposal(self, act: Act, order: dict[str, Any]) -> str:
        arguments = act.arguments
        place = f"order {arguments['order_id']}" if "order_id" in arguments else "your profile"
        lines = [f"{act.name.replace('_', ' ').capitalize()}, {place}:"]
        old = _chosen(order, arguments.get("item_ids", ()))
        new = [*arguments.get("new_item_ids", ()), *[None] * len(old)]
        for item, other in zip(old, new, strict=False):
            line = f"- {item['name']} {item['item_id']} ({_options(item)}, ${item['price']})"
            if other is not None:
                variant = self._variant(item["product_id"], other)
                line += f" for {other} ({_options(variant)}, ${variant['price']})"
            lines.append(line)
        shown = {"order_id", "item_ids", "new_item_ids"}
        lines += [f"- {name.replace('_', ' ')}: {value}" for name, value in arguments.items() if name not in shown]
        return "\n".join(lines)

    def _variant(self, product_id: str, item_id: str) -> dict[str, Any]:
        found: dict[str, Any] = self._products[product_id]["variants"][item_id]
        return found

    # -- telling things -----------------------------------------------------------------------------------------------

    def _work_out(self) -> Talk[list[str]]:
        """See `work_out`; the agent also counts the options of a product that are available."""
        counted = self._counts()
        others = [fact for fact in self._wanted.facts if fact not in counted]
        told = yield from work_out(others, self._candidates(), self._seen)
        return [fact for fact in self._wanted.facts if fact in counted or fact in told]

    def _counts(self) -> dict[str, str]:
        """How many options of each product that was read are available: the product's name by the number."""
        products = self._products.values()
        return {
            str(sum(one["available"] for one in product["variants"].values())): product["name"] for product in products
        }

    def _cheapest(self, item: dict[str, Any]) -> float | None:
        product = self._products.get(item["product_id"], {"variants": {}})
        prices = [one["price"] for one in product["variants"].values() if one["available"]]
        return min(prices, default=None)

    def _refund(self, act: Act, order: dict[str, Any]) -> Terms:
        """What a change gives back, as amounts to add up."""
        items = _chosen(order, act.arguments.get("item_ids", ()))
        if act.name == "cancel_pending_order":
            return [paid["amount"] for paid in order["payment_history"]]
        new = act.arguments.get("new_item_ids", ())
        prices = [-self._variant(item["product_id"], other)["price"] for item, other in zip(items, new, strict=False)]
        return [*(item["price"] for item in items), *prices]

    def _candidates(self) -> Iterator[Terms]:
        """Sums that a user may ask for, the likely ones first."""
        yield from (terms for expression in self._wanted.sums if (terms := terms_of(expression)) is not None)
        yield from self._sums
        yield [term for terms in self._sums for term in terms]
        methods = self._profile["payment_methods"].values()
        yield from ([method["balance"], *terms] for method in methods if "balance" in method for terms in self._sums)
        items = [item for order in self._orders.values() for item in order["items"]]
        for name in dict.fromkeys(item["name"] for item in items):
            yield [item["price"] for item in items if item["name"] == name]
        for order in self._orders.values():
            yield from subsets([item["price"] for item in order["items"]])
            cheapest = [(item["price"], self._cheapest(item)) for item in order["items"]]
            yield [price for old, new in cheapest if new is not None for price in (old, -new)]

    def _farewell(self, facts: Sequence[str]) -> str:
        results = [*self._orders.values(), *self._products.values(), self._profile]
        facts = [named(fact, results) for fact in facts]
        counted = self._counts()
        facts = [f"{counted[fact]}, available options: {fact}" if fact in counted else fact for fact in facts]
        told = f"Here is what you wanted to know. {'; '.join(facts)}.\n" if facts else ""
        if self._wanted.writes:
            return f"{told}Your request is done. Goodbye!"
        return f"{told or 'I am sorry, our policy does not allow me to do more here. '}Goodbye!"


def _failed(result: str) -> bool:
    return result.startswith("Error")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z]", "", name.lower())


def _chosen(order: dict[str, Any], item_ids: Any) -> list[dict[str, Any]]:
    """The items of ``order`` with these ids, in the order of ``item_ids``; an id given twice chooses its item twice."""
    by_id = {item["item_id"]: item for item in order.get("items", ())}
    return [by_id[item_id] for item_id in item_ids]


def _options(item: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in item["options"].items())
