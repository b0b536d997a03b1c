"""What calls begin with in the formats that vLLM's parsers read, by the parser's name.

vLLM's parsers return broken calls as content without a word. A turn that contains more of these texts than calls, and
not inside an argument, has a malformed call.
"""

# ruff: noqa: RUF001  # the bars are those of the formats

from __future__ import annotations

from typing import Any

OPENINGS: dict[str, tuple[str, ...]] = {
    "apertus": ("<|tools_prefix|>",),
    "cohere_command3": ("<|START_ACTION|>",),
    "cohere_command4": ("<|START_ACTION|>",),
    "deepseek_v3": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    "deepseek_v31": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"),
    "deepseek_v32": ("<｜DSML｜function_calls>", "<｜DSML｜invoke"),
    "deepseek_v4": ("<｜DSML｜tool_calls>", "<｜DSML｜invoke"),
    "deepseek_v41": ("<｜DSML｜ calls>", "<｜DSML｜ invoke"),
    "dots": ("<dots_function_call>",),
    "ernie45": ("<tool_call>",),
    "functiongemma": ("<start_function_call>",),
    "gemma4": ("<|tool_call>",),
    "gigachat3": ("function call<|role_sep|>", "<|function_call|>"),
    "glm45": ("<tool_call>",),
    "glm47": ("<tool_call>",),
    "granite": ("<|tool_call|>", "<tool_call>"),
    "granite-20b-fc": ("<function_call>",),
    "granite4": ("<tool_call>",),
    "hunyuan_a13b": ("<tool_calls>",),
    "hy_v3": ("<tool_calls>",),
    "hy_v4": ("<tool_calls>",),
    "inkling": ("<|content_invoke_tool_json|>", "<|content_invoke_tool_text|>"),
    "internlm": ("<|action_start|>",),
    "jamba": ("<tool_calls>",),
    "k2_horizon": ("<ifm|tool_calls>",),
    "kimi_k2": ("<|tool_calls_section_begin|>", "<|tool_call_begin|>"),
    "kimi_k3": ("<|open|>tools", "<|open|>call"),
    "lfm2": ("<|tool_call_start|>",),
    "ling3": ("<tool_call>",),
    "longcat": ("<longcat_tool_call>",),
    "mimo": ("<tool_call>",),
    "minicpm5": ("<function",),
    "minimax_m2": ("<minimax:tool_call>", "<invoke name="),
    "minimax_m3": ("<invoke name=",),
    "olmo3": ("<function_calls>",),
    "phi4_mini_json": ("functools[",),
    "plamo3": ("<|plamo:begin_tool_requests:plamo|>", "<|plamo:begin_tool_request:plamo|>"),
    "poolside_v1": ("<tool_call>",),
    "qwen3_coder": ("<tool_call>", "<function="),
    "qwen3_xml": ("<tool_call>", "<function="),
    "seed_oss": ("<seed:tool_call>",),
    "step3": ("<｜tool_calls_begin｜>", "<｜tool_call_begin｜>"),
    "step3p5": ("<tool_call>", "<function="),
    "xlam": ("[TOOL_CALLS]", "<tool_call>", '[{"name"'),
}
#: Formats with marks around the text as well, or (``hf``, ``muse_glimmer``) without a fixed opening, so that their
#: broken calls are not noticed. A stream of them waits for the end.
MARKED_UP = frozenset(
    {"cohere_command3", "cohere_command4", "gigachat3", "hf", "inkling", "kimi_k3", "muse_glimmer", "xlam"}
)
_ATTRIBUTES = ("tool_call_start_token", "tool_calls_start_token", "tool_start_token")


def openings_of(name: str, parser: Any) -> tuple[str, ...]:
    """The openings of ``parser``, one of vLLM's, registered as ``name``: the list's and those that it names itself."""
    own = [text for key in _ATTRIBUTES if isinstance(text := getattr(parser, key, None), str) and text]
    return tuple(dict.fromkeys((*OPENINGS.get(name, ()), *own)))
