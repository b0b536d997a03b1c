"""The policy's chat template and tool-call parser: probed before anything starts, and shown in the plan."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError, Violation
from tau2_lightning.policy import tiny
from tau2_lightning.policy.chat_templates import template_names, template_source
from tau2_lightning.policy.loading import check_policy_path, last_written
from tau2_lightning.rollout.chat.parser_probe import AUTO, read_by_vllm
from tau2_lightning.rollout.chat.template_words import template_kwargs

if TYPE_CHECKING:  # transformers, which takes seconds to import, is needed where there is a template to probe
    from tau2_lightning.rollout.chat.probe import TemplateReport

_TINY_PARSER = "hermes"


def check_template(config: RunConfig, policy: Path | str | None = None) -> tuple[RunConfig, list[Violation]]:
    """The configuration with ``rollout.tool_call_parser`` chosen, and why the chat template or the parser cannot be
    used.

    ``policy`` is the policy's folder; by default it is what ``actor.path`` names. A policy that does not exist yet is
    not probed, and its parser stays ``auto``.
    """
    place = policy or config.actor.path
    if place is None:
        return _with_parser(config, _TINY_PARSER), [*_of_tiny(config)]
    if not _loads(config, place):  # which `check_policy_path` says
        return config, []
    from tau2_lightning.rollout.chat.template import ChatFormatError

    try:
        source = _given(config)
    except ConfigError as error:
        return config, list(error.violations)
    try:
        report = _report(config, place, source)
    except ChatFormatError as error:
        return config, [_refused(config, f"{_whose(config)} cannot be used: {error}")]
    except ValueError:  # an unknown reasoning parser, which `check_words` reports
        return config, []
    found = []
    if report.lost:
        found.append(_refused(config, f"{_whose(config)} leaves out of the prompt: {'; '.join(report.lost)}"))
    elif (problem := _parser_problem(config, str(place), source, report)) is not None:
        found.append(problem)
    return (config if found else _with_parser(config, str(report.choice.name))), found


def template_lines(config: RunConfig) -> list[str]:
    """The plan's lines about the template, for a checked configuration; none when the policy does not exist yet."""
    place, parser = config.actor.path, config.rollout.tool_call_parser
    if place is None:
        return [f"chat template: the tiny policy's own, append-only; calls are read by {parser}"]
    try:
        report = _report(config, place, _given(config)) if _loads(config, place) else None
    except (ConfigError, ValueError):
        report = None
    if report is None:
        return []
    if parser == AUTO and report.choice.name:  # refused for another reason, so the choice is not in the configuration
        parser = report.choice.name
    of_vllm = parser != AUTO and read_by_vllm(parser)
    by = f"vLLM's {parser}, which also decides what is malformed" if of_vllm else parser
    lines = [f"chat template: {_whose(config)}; calls are read by {by}; {_growth(config, report)}"]
    return lines + [f"for the chat template: {change}" for change in report.changes()]


def _loads(config: RunConfig, place: Path | str) -> bool:
    """Whether the policy's configuration and tokenizer load; a policy that a GGUF file will become does not yet."""
    return not check_policy_path(place, template=config.actor.chat_template)


def _growth(config: RunConfig, report: TemplateReport) -> str:
    if not report.rewrites:
        return "it grows append-only"
    kept = {
        "keep": "sampled tokens stay, so prompts hold more than the template alone would write",
        "branch": "each rewritten turn begins a new row, which computes its whole prompt again",
    }[config.rollout.history_policy]
    what = ", ".join(report.rewrites)
    return f"it rewrites {what}; rollout.history_policy={config.rollout.history_policy}: {kept}"


def _of_tiny(config: RunConfig) -> list[Violation]:
    given, parser = config.actor.chat_template, config.rollout.tool_call_parser
    found = []
    if given is not None:
        remedy = "Leave it null, or name a model with actor.path"
        found.append(Violation("actor.chat_template", given, "the tiny policy has a template of its own", remedy))
    if parser not in (AUTO, _TINY_PARSER):
        problem = "does not read the calls that the tiny policy's template writes"
        found.append(Violation("rollout.tool_call_parser", parser, problem, f"Use {_TINY_PARSER} or {AUTO}"))
    return found


def _parser_problem(config: RunConfig, place: str, source: str | None, report: TemplateReport) -> Violation | None:
    given, choice, key = config.rollout.tool_call_parser, report.choice, "rollout.tool_call_parser"
    if choice.name is None:
        problem = f"no parser reads the calls that {_whose(config)} writes, such as {report.written[:80]!r}"
        if choice.missing:
            problem += f"; {', '.join(choice.missing)} of vLLM could not be tried, because it is not installed"
        return Violation(key, given, problem, _other_template())
    if given in (AUTO, choice.name):
        return None
    from tau2_lightning.rollout.chat.format import ChatFormat
    from tau2_lightning.rollout.chat.probe import reads_own_calls

    remedy = f"Use {choice.name}, or {AUTO}"
    try:
        if reads_own_calls(ChatFormat.from_pretrained(place, given, chat_template=source)):
            return None
    except (ValueError, ImportError) as error:
        return Violation(key, given, str(error).removeprefix(f"tool_call_parser={given!r} "), remedy)
    problem = f"does not read the calls that {_whose(config)} writes, such as {report.written[:80]!r}"
    return Violation(key, given, problem, remedy)


def _report(config: RunConfig, place: Path | str, source: str | None) -> TemplateReport:
    """The probe's report, with the reasoning parser and the template's arguments that the run's requests have."""
    words = json.dumps(template_kwargs(config.gconfig), sort_keys=True)
    return _examined(str(place), source, config.rollout.reasoning_parser, words, last_written(place))


@lru_cache(maxsize=8)
def _examined(place: str, source: str | None, reasoning_parser: str | None, words: str, written: int) -> TemplateReport:
    """The report, cached. ``written`` is when the policy's files were last written: changed files are probed anew."""
    from tau2_lightning.rollout.chat.format import ChatFormat
    from tau2_lightning.rollout.chat.probe import examine

    chat_format = ChatFormat.from_pretrained(place, None, reasoning_parser=reasoning_parser, chat_template=source)
    report = examine(chat_format, **json.loads(words))
    if source is None and _is_tiny(place):
        # Its prompt shows neither rules nor tools on purpose: the warm start teaches them.
        return replace(report, lost=(), choice=chat_format.parser_choice())
    return report


def _is_tiny(place: str) -> bool:
    file = Path(place) / "chat_template.jinja"
    return file.is_file() and file.read_text(encoding="utf-8").strip() == tiny.chat_template()


def _with_parser(config: RunConfig, name: str) -> RunConfig:
    """``config`` with the parser ``name`` instead of ``auto``."""
    if config.rollout.tool_call_parser != AUTO:
        return config
    return config.model_copy(update={"rollout": config.rollout.model_copy(update={"tool_call_parser": name})})


def _given(config: RunConfig) -> str | None:
    given = config.actor.chat_template
    return None if given is None else template_source(given)


def _whose(config: RunConfig) -> str:
    given = config.actor.chat_template
    return f"the tokenizer's own template ({config.actor.path})" if given is None else given


def _refused(config: RunConfig, problem: str) -> Violation:
    return Violation("actor.chat_template", config.actor.chat_template, problem, _other_template())


def _other_template() -> str:
    names = " or ".join(f"actor.chat_template={name}" for name in template_names())
    return f"Use {names}, or the path of a Jinja template that shows them"
