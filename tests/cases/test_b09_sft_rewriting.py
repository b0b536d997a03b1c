"""B9: supervised fine-tuning with a template that rewrites history trains the tokens that inference sees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from tau2_lightning import sft
from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.chat_templates import template_source
from tau2_lightning.policy.dialogues import EncodedDialogue, TextDialogue, render_spans
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.run.compose import load_config
from tau2_lightning.warm_start.dialogues import training_dialogues
from tau2_lightning.warm_start.encoding import encode_as_sessions, session_rows
from tests.cases.templated import rig_of, with_template, words_of
from tests.jobs import small_policy
from tests.rollout.chat import behaviours as b
from tests.rollout.proxy.fixtures import template

CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": "door"}'}}
TALK: list[dict[str, Any]] = [
    {"role": "system", "content": "Rules."},
    {"role": "assistant", "content": "Hi! How can I help?"},
    {"role": "user", "content": "My door is stuck."},
    {
        "role": "assistant",
        "content": "",
        "reasoning_content": "I look first.",
        "tool_calls": [CALL, {**CALL, "id": "c2"}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": "shut"},
    {"role": "tool", "tool_call_id": "c2", "content": "still shut"},
    {"role": "assistant", "content": "It is shut.", "reasoning_content": "I say so."},
    {"role": "user", "content": "Thank you."},
    {"role": "assistant", "content": "Bye."},
]
TOOLS = [{"type": "function", "function": {"name": "look", "description": "Look.", "parameters": {"type": "object"}}}]
TEMPLATES = {
    "qwen3": lambda: template("qwen3"),
    "ours": lambda: template_source("qwen3"),
    "forgetful": lambda: b.FORGETFUL,
    "ids": lambda: b.NINE,
    "user first": lambda: b.USER_FIRST,
}


def turns_of(row: EncodedDialogue) -> list[tuple[int, int]]:
    """Start and end of each run of trained tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.action_mask.astype(int), [0]])))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


async def replayed(source: str, dialogue: TextDialogue, policy: Any) -> tuple[list[EncodedDialogue], list[Any], Any]:
    """The dialogue's rows, and the prompts that a proxy gives the engine when the policy says what the rows say."""
    async with rig_of(source, history_policy=policy) as rig:
        rows = list(session_rows(rig.format, dialogue, policy))
        session = rig.store.start(tools=dialogue.tools)
        for row in rows:
            for start, end in turns_of(row):
                rig.engine.script.append(row.token_ids[start:end].tolist())
        messages: list[Any] = []
        sampled = 0
        for at, message in enumerate(dialogue.messages):
            greets = message["role"] == "assistant" and dialogue.messages[at + 1 : at + 2] and at < 2
            if message["role"] == "assistant" and not (greets and dialogue.messages[at + 1]["role"] == "user"):
                answer = await rig.post(session.api_key, {"messages": messages})
                assert answer.status_code == 200, answer.text
                reply = answer.json()["choices"][0]["message"]
                assert (reply.get("content") or "") == (message.get("content") or "")
                assert len(reply.get("tool_calls") or ()) == len(message.get("tool_calls") or ())
                sampled += 1
                messages.append(message)
            else:
                messages.append(message)
        assert sampled == sum(len(turns_of(row)) for row in rows)
        return rows, [call[0] for call in rig.engine.calls], session


@pytest.mark.parametrize("policy", ["keep", "branch"])
@pytest.mark.parametrize("kind", TEMPLATES)
async def test_b09_every_trained_token_stands_behind_the_prompt_of_inference(kind: str, policy: Any) -> None:
    rows, prompts, session = await replayed(TEMPLATES[kind](), TextDialogue(TALK, TOOLS), policy)
    seen = iter(prompts)
    for row in rows:
        for start, _ in turns_of(row):
            assert row.token_ids[:start].tolist() == next(seen)
    rewriting = kind in ("qwen3", "forgetful")
    assert (len(rows) > 1) == (rewriting and policy == "branch")
    trained = sum(int(row.action_mask.sum()) for row in rows)
    assert trained == session.sampled_tokens, "each sampled token is trained once"


async def test_b09_the_greeting_is_not_trained() -> None:
    async with rig_of(template("qwen3")) as rig:
        (row,) = session_rows(rig.format, TextDialogue(TALK, TOOLS), "keep")
        said = rig.format.tokenizer.decode(row.token_ids[row.action_mask])
        assert "How can I help" not in said and said.count("<|im_end|>") == 3
        assert "I look first." in said and "shut</tool" not in said


async def test_b09_turns_are_trained_behind_the_words_of_the_runs_requests() -> None:
    plain = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in TALK]
    async with rig_of(template("qwen3")) as rig:
        prompt = rig.format.render(plain[:3], TOOLS, enable_thinking=False)
        assert prompt != rig.format.render(plain[:3], TOOLS)
        (row,) = session_rows(rig.format, TextDialogue(plain, TOOLS), "keep", enable_thinking=False)
        ((start, _), *_) = turns_of(row)
        assert row.token_ids[:start].tolist() == prompt


async def test_b09_demonstrations_of_retail_train_with_the_stock_template() -> None:
    config = load_config(["domain=retail", "econfig.user=scripted", "warm_start.demonstrations=2"])
    dialogues, _ = training_dialogues(config, Console(quiet=True))
    with pytest.raises(ValueError, match="rewrites history"):
        render_spans(dialogues[0], template("qwen3"))  # what became of them before
    rows, prompts, _ = await replayed(template("qwen3"), dialogues[0], "keep")
    ((start, _), *_) = turns_of(rows[0])
    assert rows[0].token_ids[:start].tolist() == prompts[0] and len(prompts) == len(turns_of(rows[0]))
    async with rig_of(template("qwen3")) as rig:
        encoded, how = encode_as_sessions(rig.format, dialogues, "keep")
        assert len(encoded) == 2 and how.startswith("one row per dialogue")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("b09") / "talk.jsonl"
    file.write_text("\n".join([json.dumps({"messages": TALK, "tools": TOOLS})] * 4))
    return file


@pytest.mark.parametrize(
    ("words", "stated", "rows"),
    [
        ([], "one row per dialogue, each turn after the tokens that a session would hold", 4),
        (
            ["rollout.history_policy=branch"],
            "rollout.history_policy=branch begins a new row after each rewritten turn",
            8,
        ),
        (["actor.chat_template=qwen3", "rollout.history_policy=branch"], "one row per dialogue", 4),
    ],
)
def test_b09_the_command_trains_and_says_how(
    words: list[str], stated: str, rows: int, data: Path, tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str], tmp_path: Path,
) -> None:  # fmt: skip
    policy = with_template(small_policy(tmp_path_factory), template("qwen3"), tmp_path / "policy")
    small = [
        "warm_start.steps=2",
        "warm_start.tokens_per_step=4000",
        "warm_start.precision=fp32",
        f"cache_dir={tmp_path}",
    ]
    assert sft.main(words_of(policy, f"warm_start.data={data}", *small, *words)) == 0
    told = capsys.readouterr()
    assert stated in told.err
    made = Path(told.out.strip().splitlines()[-1])
    facts = json.loads((made / "warm_start.json").read_text())
    assert facts["rows"] == rows and facts["dialogues"] == 4
    source = template_source("qwen3") if "actor.chat_template=qwen3" in words else template("qwen3")
    assert load_tokenizer(made).chat_template.strip() == source.strip()


def test_b09_a_dialogue_that_the_template_refuses_is_named(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    policy = with_template(small_policy(tmp_path_factory), b.TOOLS_WITH_FIRST, tmp_path / "policy")
    data = tmp_path / "two.jsonl"
    data.write_text(json.dumps({"messages": TALK, "tools": TOOLS}))
    words = words_of(policy, f"warm_start.data={data}", "warm_start.steps=2", f"cache_dir={tmp_path}")
    config = load_config([*words, "trainer.progress=off"], check=False)
    from tau2_lightning.warm_start.make import warm_start_policy

    config = config.model_copy(update={"rollout": config.rollout.model_copy(update={"tool_call_parser": "hermes"})})
    with pytest.raises(ConfigError, match=r"warm_start\.data='dialogue 1': the chat template does not accept"):
        warm_start_policy(config)
