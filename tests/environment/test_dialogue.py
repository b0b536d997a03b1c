"""The interface of an episode: messages for the agent, shared schemas, simultaneous dialogues, user-written domains."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tau2_lightning.environment import Dialogue, describe_domain, load_tasks, training_reward
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.blueprints import blueprint, stock_environment
from tau2_lightning.environment.tasks import get_task
from tests.environment.helpers import banking, calls, first_task, play, says, scripted, solo, unjudged, upstream_only


def gold_calls(task: Any) -> list[dict[str, Any]]:
    actions = get_task(task).evaluation_criteria.actions or []
    return [calls((a.name, a.arguments)) for a in actions if a.requestor == "assistant"]


async def test_history_only_grows_and_keeps_the_agents_words_untouched() -> None:
    dialogue = Dialogue(first_task(), solo(), seed=1)
    await dialogue.start()
    odd = {"id": "x", "type": "function", "function": {"name": "check_sim_status", "arguments": "{ }"}}
    for reply in [{"role": "assistant", "content": "", "tool_calls": [odd]}, calls(("check_apn_settings", {}))]:
        seen = dialogue.messages
        before = json.dumps(seen)
        await dialogue.reply(reply)
        assert json.dumps(dialogue.messages[: len(seen)]) == before
        assert dialogue.messages[len(seen)]["tool_calls"] == reply["tool_calls"]


@pytest.mark.parametrize(
    "mode",
    [
        "solo",
        "dual",
        "retail",
        "mock-history",
        pytest.param("full_kb", marks=upstream_only),
        pytest.param("golden_retrieval", marks=upstream_only),
        pytest.param("bm25_grep", marks=upstream_only),
    ],
)
async def test_messages_and_tools_are_what_stock_tau2_sends(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the same replies, our messages equal those in an intercepted completion call of tau2's own agent."""
    from tau2.utils import llm_utils

    known = {
        "solo": solo(),
        "dual": scripted("telecom"),
        "retail": unjudged("retail"),
        "mock-history": scripted("mock"),
    }
    settings = known.get(mode) or banking(mode)
    tasks = load_tasks(settings.domain, "base", solo_mode=settings.solo_mode)
    task = next(t for t in tasks if mode != "mock-history" or "history" in t.task_id)
    dialogue = await play(task, settings, gold_calls(task)[:3])
    sent: dict[str, Any] = {}

    def completion(**request: Any) -> Any:
        sent.update(request)
        raise ConnectionError("intercepted")

    monkeypatch.setattr(llm_utils, "completion", completion)
    environment = stock_environment(settings.domain, settings.solo_mode, settings.retrieval, get_task(task))
    policy = environment.get_policy()
    if settings.solo_mode:
        tools = environment.get_tools() + environment.get_user_tools()
        agent = api.LLMSoloAgent(tools, policy, get_task(task), llm="m", llm_args={})
    else:
        agent = api.LLMAgent(environment.get_tools(), policy, llm="m", llm_args={})
    orchestrator = dialogue._orchestrator
    state = agent.get_init_state(list(orchestrator.agent_state.messages) if orchestrator.agent_state else None)
    with pytest.raises(ConnectionError, match="intercepted"):
        agent.generate_next_message(orchestrator.message, state)
    assert [_plain(m) for m in dialogue.messages] == [_plain(m) for m in sent["messages"]]
    assert dialogue.tools == sent["tools"] and dialogue.tool_choice == sent["tool_choice"]


def _plain(message: dict[str, Any]) -> dict[str, Any]:
    """A message in a form that can be compared: with parsed arguments and without empty fields."""
    out = {key: value for key, value in message.items() if key != "tool_calls" and value is not None}
    for call in message.get("tool_calls") or ():
        function = call["function"]
        out.setdefault("calls", []).append((call["id"], function["name"], json.loads(function["arguments"])))
    return out


async def test_policy_texts() -> None:
    texts = {}
    for policy in ("full", "none", "ticket"):
        texts[policy] = (await play(first_task(), solo(policy=policy), [])).messages
    assert texts["ticket"] == [{"role": "user", "content": get_task(first_task()).ticket}]
    assert [m["role"] for m in texts["full"]] == ["system"] and len(texts["full"][0]["content"]) > 20_000
    assert texts["none"][0]["content"] == texts["full"][0]["content"].replace(blueprint("telecom", True).policy, "")


async def test_schemas_are_one_shared_object() -> None:
    one, two = await play(first_task(), solo(), []), await play(first_task(), solo(), [])
    assert one.tools is two.tools and len(one.tools) == 44


async def test_episodes_with_the_same_prompt_share_one_string() -> None:
    by_ticket = {get_task(task).ticket: task for task in load_tasks("telecom", "train", solo_mode=True)}
    first, other = list(by_ticket.values())[:2]
    prompts = [(await play(task, solo(), [])).messages[0]["content"] for task in (first, first, other)]
    assert prompts[0] is prompts[1] and get_task(first).ticket in prompts[0]
    assert get_task(other).ticket in prompts[2] and get_task(first).ticket not in prompts[2]
    bare = (await play(first, solo(policy="none"), [])).messages[0]["content"]
    assert len(bare) < len(prompts[0]) / 10  # another policy setting gives another prompt


async def test_many_dialogues_at_once_do_not_touch_each_other() -> None:
    tasks = load_tasks("retail", "train")[:8]

    async def one(task: Any) -> float:
        dialogue = Dialogue(task, unjudged("retail"), seed=1)
        await dialogue.start()
        facts = get_task(task).evaluation_criteria.communicate_info or []
        for reply in [*gold_calls(task), says("; ".join(facts) + ". Goodbye!")]:
            await asyncio.sleep(0)
            await dialogue.reply(reply)
        return dialogue.outcome().reward

    assert await asyncio.gather(*[one(task) for task in tasks * 4]) == [1.0] * 32
    blueprint("retail", False).verify_pristine()


async def test_a_penalty_for_needless_transfers_is_in_the_training_reward_only() -> None:
    tasks = load_tasks("telecom", "train", solo_mode=True)
    task, asked = (next(t for t in tasks if t.transfer_expected == expected) for expected in (False, True))
    settings = solo(transfer_penalty=0.4)
    hack = [calls(("transfer_to_human_agents", {"summary": "x"})), calls(("done", {}))]
    needless, wanted = [(await play(t, settings, hack)).outcome() for t in (task, asked)]
    assert needless.transferred and needless.reward == 0.0
    assert training_reward(needless, settings) == pytest.approx(-0.4)
    assert training_reward(wanted, settings) == wanted.reward
    assert training_reward(needless, solo()) == 0.0


async def test_misuse_is_an_error_of_the_caller() -> None:
    dialogue = await play(first_task(), solo(), [])
    with pytest.raises(RuntimeError, match="still going on"):
        dialogue.outcome()
    await dialogue.reply(calls(("done", {})))
    assert dialogue.outcome() is dialogue.outcome()
    with pytest.raises(RuntimeError, match="over"):
        await dialogue.reply(calls(("done", {})))
    with pytest.raises(RuntimeError, match="over"):
        dialogue.abort("x")


async def test_a_domain_of_the_users_own_needs_no_change_here() -> None:
    """The domain is in tau2's registry; its toolkit class is local to a function, so it cannot be pickled."""
    from tau2.domains.mock.environment import get_environment, get_tasks
    from tau2.domains.mock.tools import MockTools
    from tau2.environment.toolkit import ToolType, is_tool

    class OwnTools(MockTools):
        @is_tool(ToolType.READ)
        def moon_phase(self) -> str:
            """Tell the phase of the moon."""
            return "full"

    def environment(solo_mode: bool = False) -> Any:
        made = get_environment(solo_mode=solo_mode)
        made.domain_name, made.tools = "own", OwnTools(made.tools.db)
        return made

    if "own" not in api.registry.get_domains():
        api.registry.register_domain(environment, "own")
        api.registry.register_tasks(lambda task_split_name=None: get_tasks(None), "own")
    info = describe_domain("own")
    assert info.has_solo and "moon_phase" in info.tools and info.splits["train"] == 5
    task = load_tasks("own", "train", solo_mode=True)[0]
    dialogue = await play(task, solo("own"), [calls(("moon_phase", {})), *gold_calls(task), calls(("done", {}))])
    assert dialogue.outcome().tool_errors == 0
    names = [user_task.title for user_task in dialogue._orchestrator.environment.tools.db.tasks.values()]
    again = await play(task, solo("own"), [calls(("get_users", {}))])
    fresh = [user_task.title for user_task in again._orchestrator.environment.tools.db.tasks.values()]
    assert "Important Meeting" in names and "Important Meeting" not in fresh
