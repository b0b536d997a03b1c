"""The seed of an episode decides the ids that tau2 makes up in it; outside of episodes ids stay random."""

from __future__ import annotations

from tau2.domains.telecom import tools as telecom_tools

from tau2_lightning.environment import Dialogue
from tau2_lightning.environment.blueprints import blueprint
from tau2_lightning.environment.made_up_ids import MadeUpIds

from .helpers import calls, first_task, solo


async def customer_after_a_refuel(seed: int) -> str:
    """The record of a customer after a data refuel. The customer had no open bill, so tau2 makes up a bill id."""
    db = blueprint("telecom", True).environment().tools.db
    drafts = {bill.customer_id for bill in db.bills if bill.status == "Draft"}
    customer = next(c for c in db.customers if c.customer_id not in drafts and c.line_ids)
    who = {"customer_id": customer.customer_id}
    dialogue = Dialogue(first_task(), solo(), seed=seed)
    await dialogue.start()
    await dialogue.reply(calls(("refuel_data", {**who, "line_id": customer.line_ids[0], "gb_amount": 2.0})))
    await dialogue.reply(calls(("get_customer_by_id", who)))
    return str(dialogue.messages[-1]["content"])


async def test_the_ids_an_agent_reads_follow_from_the_seed() -> None:
    first, again, other = [await customer_after_a_refuel(seed) for seed in (1, 1, 2)]
    assert '"bill_ids": ["' in first
    assert first == again
    assert first != other, "no id was made up, so the test shows nothing"


def test_outside_of_an_episode_ids_are_the_machines() -> None:
    made = {telecom_tools.uuid.uuid4().hex for _ in range(100)}
    seeded = MadeUpIds("a seed")
    with seeded:
        inside = [telecom_tools.uuid.uuid4() for _ in range(50)]
    made |= {telecom_tools.uuid.uuid4().hex for _ in range(100)}
    with seeded:  # continues its sequence of ids
        inside += [telecom_tools.uuid.uuid4() for _ in range(50)]
    with MadeUpIds("a seed"):
        assert [telecom_tools.uuid.uuid4() for _ in range(100)] == inside
    assert len(made | {one.hex for one in inside}) == 300
    assert {one.version for one in inside} == {4}
    assert telecom_tools.uuid.NAMESPACE_DNS.hex
