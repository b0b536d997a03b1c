"""Small chat templates, each with one behaviour of a kind that real ones have."""

from __future__ import annotations

_TOOLS = (
    "{%- if tools -%}<|im_start|>system\n{%- for t in tools -%}{{ t | tojson }}\n{%- endfor -%}<|im_end|>{%- endif -%}"
)
_HERMES = (
    "{{ '<tool_call>\n{\"name\": \"' + f.name + '\", \"arguments\": ' + (f.arguments | tojson) + '}\n</tool_call>' }}"
)
_LLAMA = "{{ '{\"name\": \"' + f.name + '\", \"parameters\": ' + (f.arguments | tojson) + '}' }}"
_RESULT = "{{ message.content }}"


def chatml(
    *,
    check: str = "",
    tools: str = _TOOLS,
    call: str = _HERMES,
    result: str = _RESULT,
    thought: str = "",
    text: str = "",
) -> str:
    """ChatML with each part replaceable. ``call`` sees the function ``f`` and the call ``c``."""
    return (
        f"{check}{tools}"
        "{%- for message in messages -%}"
        "{{- '<|im_start|>' + message.role + '\n' -}}"
        "{%- if message.role == 'assistant' -%}" + thought + "{%- endif -%}"
        "{%- if message.role == 'tool' -%}"
        + result
        + "{%- else -%}{{- message.content + '"
        + text
        + "' -}}{%- endif -%}"
        "{%- for c in message.tool_calls or [] -%}{%- set f = c.function -%}" + call + "{%- endfor -%}"
        "{{- '<|im_end|>\n' -}}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
    )


def refusing(condition: str) -> str:
    """A check that refuses conversations with ``condition``."""
    return "{%- if " + condition + " -%}{{- raise_exception('refused') -}}{%- endif -%}"


_REST = "(messages[1:] if messages[0].role == 'system' else messages)"
_IDS = (
    "{%- for m in messages -%}{%- for c in m.tool_calls or [] -%}"
    + refusing("c.id | length != 9")
    + (
        "{%- endfor -%}{%- if m.role == 'tool' -%}"
        + refusing("m.tool_call_id | length != 9")
        + "{%- endif -%}{%- endfor -%}"
    )
)

PLAIN = chatml()
NO_TOOLS = chatml(tools="")
NO_ARGUMENTS = chatml(
    tools="{%- for t in tools or [] -%}{{ t.function.name }}: {{ t.function.description }}{%- endfor -%}"
)
NO_SYSTEM = chatml(check=refusing("messages[0].role == 'system'"))
NO_RESULTS = chatml(result="")
#: Qwen3.5: a conversation without a user's message is refused.
NEEDS_USER = chatml(check=refusing("messages | selectattr('role', 'equalto', 'user') | list | length == 0"))
#: Gemma, Mistral: the user speaks first.
USER_CHECK = "{%- set rest = " + _REST + " -%}" + refusing("not rest or rest[0].role != 'user'")
USER_FIRST = chatml(check=USER_CHECK)
#: Llama 3.1: the tools are part of the first message, whoever wrote it.
TOOLS_WITH_FIRST = (
    "{%- set rest = "
    + _REST
    + " -%}"
    + refusing("not rest")
    + "{%- if messages[0].role == 'system' -%}{{ messages[0].content }}{%- endif -%}<|im_start|>user\n"
    + "{%- for t in tools or [] -%}{{ t | tojson }}{%- endfor -%}{{ rest[0].content }}<|im_end|>\n"
    + "{%- for message in rest[1:] -%}"
    + refusing("message.tool_calls and message.tool_calls | length > 1")
    + "{{- '<|im_start|>' + message.role + '\n' + message.content -}}"
    + "{%- for c in message.tool_calls or [] -%}{%- set f = c.function -%}"
    + _LLAMA
    + "{%- endfor -%}<|im_end|>\n"
    + "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
#: Mistral: call ids of nine characters; calls as a JSON list behind a mark.
NINE = chatml(check=_IDS, result="{{ message.tool_call_id + ': ' + message.content }}")
MISTRAL = chatml(
    check=_IDS,
    call="{{ ('[TOOL_CALLS][' if loop.first else ', ') + ({'name': f.name, 'arguments': f.arguments} | tojson)"
    " + (']' if loop.last else '') }}",
)
NAMED_RESULTS = chatml(result="{{ (message.name or 'unknown') + ': ' + message.content }}")
NEEDS_NAMES = chatml(result="{{ message.name + ': ' + message.content }}")
TEXT_ARGUMENTS = chatml(
    call="{{ '<tool_call>\n{\"name\": \"' + f.name + '\", \"arguments\": ' + f.arguments + '}\n</tool_call>' }}"
)
UNREADABLE = chatml(call="{{ 'CALL ' + f.name + ' WITH ' + (f.arguments | tojson) }}")
#: Qwen3: reasoning is shown until the next message of the user.
FORGETFUL = chatml(
    thought="{%- set later = messages[loop.index0:] | selectattr('role', 'equalto', 'user') | list -%}"
    "{%- if message.reasoning_content and not later -%}"
    "{{- '<think>\n' + message.reasoning_content + '\n</think>\n\n' -}}{%- endif -%}"
)
