"""The embedded policy is an ordinary Hugging Face folder whose chat format is token-exact and append-only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tau2_lightning.errors import ConfigError
from tau2_lightning.policy.loading import load_tokenizer
from tau2_lightning.policy.tiny import END_OF_TURN, STRUCTURE, build_tiny_policy, train_tokenizer
from tau2_lightning.strategy.opening import load_causal_lm

TICKET = "The user has no phone service. Customer name: John Smith, phone number: 555-123-2002, \U0001f4f5 abroad."


def call(name: str, **arguments: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": json.dumps(arguments)}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "c", "type": "function", "function": function}]}


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": text}


DIALOGUE: list[dict[str, Any]] = [
    {"role": "system", "content": f"<policy>\nBe kind.\n</policy>\n<ticket>\n{TICKET}\n</ticket>"},
    call("check_network_status"),
    result("Airplane Mode: ON\nSignal: none"),
    call("toggle_airplane_mode"),
    result("Airplane Mode is now OFF."),
    result("A second result, as parallel calls give."),
    call("refuel_data", customer_id="C1001", gb_amount=2.0),
    result('{"ok": true, "id": "L1002"}'),
    call("done"),
]
TEXTS = [message["content"] or message["tool_calls"][0]["function"]["name"] for message in DIALOGUE] * 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_policy(tmp_path_factory.mktemp("tiny"), TEXTS, seed=3, size="s", vocab_size=512)


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)


def tokens(tokenizer: Any, messages: list[dict[str, Any]], prompt: bool) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=False)


def test_loads_as_an_ordinary_model_and_runs(folder: Path, tokenizer: Any) -> None:
    model = load_causal_lm(folder)
    assert model.config.model_type == "qwen3" and model.config.tie_word_embeddings
    assert model.config.vocab_size == len(tokenizer) and len(tokenizer) % 64 == 0
    assert model.generation_config.eos_token_id[0] == tokenizer.convert_tokens_to_ids(END_OF_TURN)
    ids = torch.tensor([tokens(tokenizer, DIALOGUE, False)])
    logits = model(input_ids=ids).logits
    assert logits.shape == (*ids.shape, len(tokenizer)) and torch.isfinite(logits).all()


def test_same_arguments_same_weights_and_another_seed_others(folder: Path, tmp_path: Path) -> None:
    again = load_causal_lm(build_tiny_policy(tmp_path / "a", TEXTS, seed=3, vocab_size=512)).state_dict()
    other = load_causal_lm(build_tiny_policy(tmp_path / "b", TEXTS, seed=4, vocab_size=512)).state_dict()
    mine = load_causal_lm(folder).state_dict()
    assert all(torch.equal(mine[name], again[name]) for name in mine)
    assert not torch.equal(mine["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_history_is_the_prompt_plus_the_sampled_turn(tokenizer: Any) -> None:
    for turn, message in enumerate(DIALOGUE):
        if message["role"] != "assistant":
            continue
        prompt = tokens(tokenizer, DIALOGUE[:turn], True)
        whole = tokens(tokenizer, DIALOGUE[: turn + 1], False)
        assert whole[: len(prompt)] == prompt
        assert whole[-1] == tokenizer.eos_token_id, "a rendered turn ends in the token that sampling stops at"
        for later in range(turn + 1, len(DIALOGUE)):
            assert tokens(tokenizer, DIALOGUE[: later + 1], True)[: len(whole)] == whole


def test_tokens_decode_to_the_rendered_text_and_calls_are_short(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(DIALOGUE, tokenize=False)
    ids = tokens(tokenizer, DIALOGUE, False)
    assert tokenizer.decode(ids) == text
    assert text.startswith(f"<|im_start|>user\n{TICKET}<|im_end|>\n<|im_start|>assistant\n<tool_call>")
    assert "Be kind" not in text
    bare = '<tool_call>\n{"name": "done", "arguments": {}}\n</tool_call><|im_end|>'
    assert len(tokenizer(bare, add_special_tokens=False)["input_ids"]) == 4


def test_ticket_in_a_user_message_renders_like_the_one_in_the_system_prompt(tokenizer: Any) -> None:
    alone = [{"role": "user", "content": TICKET}, *DIALOGUE[1:]]
    assert tokens(tokenizer, alone, True) == tokens(tokenizer, DIALOGUE, True)


def test_arguments_render_alike_as_text_and_as_objects(tokenizer: Any) -> None:
    as_objects = json.loads(json.dumps(DIALOGUE))
    for message in as_objects:
        for made in message.get("tool_calls") or []:
            made["function"]["arguments"] = json.loads(made["function"]["arguments"])
    assert tokens(tokenizer, as_objects, False) == tokens(tokenizer, DIALOGUE, False)


def test_no_structural_token_starts_with_the_end_of_turn() -> None:
    assert not [text for text in STRUCTURE if text.startswith(END_OF_TURN)]


def test_unicode_and_unseen_bytes_round_trip(tokenizer: Any) -> None:
    text = "naïve \U0001f9ea 例 \x00\x7f \t end"
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_too_small_a_vocabulary_and_an_unknown_size_are_config_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocab_size"):
        train_tokenizer(TEXTS, 200)
    with pytest.raises(ConfigError, match="no such size"):
        build_tiny_policy(tmp_path, TEXTS, size="xxl", vocab_size=512)
