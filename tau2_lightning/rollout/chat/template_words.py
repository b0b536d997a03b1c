"""The arguments that a run gives to its chat template, and a check that the template uses them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from tau2_lightning.config.environment import GenerationConfig
from tau2_lightning.errors import Violation


def template_kwargs(generation: GenerationConfig) -> dict[str, Any]:
    """The arguments of the chat template that the section ``gconfig`` sets."""
    thinking = {} if generation.enable_thinking is None else {"enable_thinking": generation.enable_thinking}
    return {**(generation.chat_template_kwargs or {}), **thinking}


class _Generation(Extension):
    """Reads ``{% generation %} ... {% endgeneration %}``, which transformers' own renderer knows."""

    tags = {"generation"}  # noqa: RUF012  # jinja2's own form

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_variables(source: str) -> frozenset[str]:
    """The names that the Jinja template ``source`` reads without setting them. Raises TemplateSyntaxError."""
    environment = Environment(extensions=[_Generation, loopcontrols])  # noqa: S701  # it renders nothing
    return frozenset(meta.find_undeclared_variables(environment.parse(source)))


def unknown_words(given: Mapping[str, Any], source: str, model: str) -> Iterator[Violation]:
    """The arguments among ``given`` that the chat template ``source`` of ``model`` does not read."""
    if not given:
        return
    try:
        known = template_variables(source)
    except TemplateSyntaxError as error:
        problem = f"the template of {model} has an error: {error}"
        yield Violation("gconfig.chat_template_kwargs", dict(given), problem, "Correct it")
        return
    # The renderer sets these itself.
    own = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "raise_exception"}
    words = ", ".join(sorted(known - own - {"strftime_now", "namespace", "range", "dict"})) or "none"
    for name, value in given.items():
        if name not in known or name in own:
            key = "gconfig.enable_thinking" if name == "enable_thinking" else f"gconfig.chat_template_kwargs.{name}"
            problem = f"the template of {model} does not use {name}"
            yield Violation(key, value, problem, f"Leave it out; arguments that it uses: {words}")
