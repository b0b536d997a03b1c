"""Upstream's banking_knowledge: how its agent finds documents (tau2's retrieval configurations), without a network.

Its environments are built for a retrieval configuration and for a task: ``golden_retrieval`` puts the task's documents
into the policy, and reads that the gold solution makes are recorded in the database (tau2's ``read_log_allowlist``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

from tau2_lightning.errors import Violation

from . import tau2_api as api
from .made_up_ids import SteadyTime
from .settings import Retrieval

# tau2's names of the configurations that need no service: no key, no embeddings, no reranker, no sandbox.
OFFLINE = ("no_knowledge", "full_kb", "golden_retrieval", "bm25", "bm25_grep", "grep_only")
SEARCHING = OFFLINE[3:]
OPTIONS = ("top_k", "grep_top_k", "case_sensitive")
PER_TASK = "golden_retrieval"
NO_RETRIEVAL = Retrieval(OFFLINE[0])
_CALL_TOOL = "call_discoverable_agent_tool"

_policies: dict[tuple[Retrieval, str], str] = {}


def retrieval_violations(domain: str, retrieval: Retrieval, prefix: str) -> Iterator[Violation]:
    """What is wrong with ``retrieval`` for ``domain``, a domain in tau2's registry."""
    key, allowed = f"{prefix}.retrieval_config", f"Use one of: {', '.join(OFFLINE)}"
    if not api.takes_retrieval(domain):
        if retrieval != Retrieval():
            remedy = f"Leave {prefix}.retrieval_config and {prefix}.retrieval_config_kwargs null"
            yield Violation(key, retrieval.config or None, f"{domain} has no knowledge base to search", remedy)
        return
    if not retrieval.config:
        yield Violation(key, None, f"{domain} needs a retrieval configuration (tau2's default asks a service)", allowed)
    elif retrieval.config not in OFFLINE:
        problem = "is unknown, or needs a service or a sandbox, which training has not"
        yield Violation(key, retrieval.config, problem, allowed)
    elif retrieval.config in SEARCHING and find_spec("rank_bm25") is None:
        yield Violation(key, retrieval.config, "needs the package rank-bm25", "Run: pip install rank-bm25")
    unknown = [name for name, _ in retrieval.options if name not in OPTIONS]
    if unknown:
        remedy = f"Use only: {', '.join(OPTIONS)}"
        yield Violation(f"{key}_kwargs", dict(retrieval.options), f"unknown: {', '.join(unknown)}", remedy)


def constructor_arguments(domain: str, retrieval: Retrieval, task: Any | None) -> dict[str, Any]:
    """What tau2's runner passes to the domain's constructor, beside the mode, for an episode of ``task``."""
    if not api.takes_retrieval(domain):
        return {}
    arguments: dict[str, Any] = {"retrieval_variant": (retrieval if retrieval.config else NO_RETRIEVAL).config}
    if retrieval.options:
        arguments["retrieval_kwargs"] = dict(retrieval.options)
    if task is not None:
        arguments |= {"task": task, "read_log_allowlist": _logged_reads(task)}
    _prepare()
    return arguments


def depends_on_task(environment: Any) -> bool:
    """Whether ``environment`` is one of a task's, as those of a domain with a knowledge base."""
    return hasattr(environment.tools, "set_read_log_allowlist")


def fit_to_task(environment: Any, retrieval: Retrieval, task: Any) -> None:
    """Make an environment that was built for no task one of ``task``."""
    environment.tools.set_read_log_allowlist(_logged_reads(task))
    environment.policy = policy_of(retrieval, task, environment.policy)


def policy_of(retrieval: Retrieval, task: Any, policy: str) -> str:
    """The agent's policy in ``task``, where the domain's is ``policy``; formatted once per task."""
    if retrieval.config != PER_TASK:
        return policy
    from tau2.domains.banking_knowledge.environment import get_knowledge_base
    from tau2.domains.banking_knowledge.retrieval import build_policy, resolve_variant

    key = (retrieval, task.id)
    if key not in _policies:
        variant = resolve_variant(retrieval.config, **dict(retrieval.options))
        _policies[key] = build_policy(variant, get_knowledge_base(), task)
    return _policies[key]


def search_indexes(toolkit: Any) -> Mapping[str, Any]:
    """The attributes of an agent's toolkit that hold indexes of the knowledge base, which no episode changes."""
    if not api.IS_UPSTREAM:
        return {}
    from tau2.knowledge.pipeline import RetrievalPipeline

    return {name: value for name, value in vars(toolkit).items() if isinstance(value, RetrievalPipeline)}


def _logged_reads(task: Any) -> set[str]:
    """tau2's ``read_log_allowlist``: names of the tools that the gold solution calls by name."""
    criteria = task.evaluation_criteria
    actions = (criteria.actions if criteria is not None else None) or []
    names = ((action.arguments or {}).get("agent_tool_name") for action in actions if action.name == _CALL_TOOL)
    return {name for name in names if name}


@cache
def _prepare() -> None:
    """Make what the agent sees independent of the machine: the order of the documents, and the time of a search.

    tau2 reads the documents in the order of the file system, which decides between equal scores, and once.
    """
    from tau2.domains.banking_knowledge import data_model, environment
    from tau2.knowledge import pipeline

    pipeline.time = SteadyTime()
    stock = data_model.KnowledgeBase.load
    kept: dict[str, Any] = {}

    def load(documents_dir: str) -> Any:
        if documents_dir not in kept:
            documents = stock(documents_dir).documents
            kept[documents_dir] = data_model.KnowledgeBase(documents=dict(sorted(documents.items())))
        return kept[documents_dir]

    data_model.KnowledgeBase.load = staticmethod(load)
    assert environment.KnowledgeBase is data_model.KnowledgeBase
