"""Streaming decodes tokens to text without changing text already sent, under both kinds of vocabulary."""

from __future__ import annotations

import random
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tau2_lightning.rollout.chat.format import ChatFormat
from tau2_lightning.rollout.chat.message_stream import TextStream
from tests.rollout.proxy.fixtures import SPECIAL, byte_tokenizer, template


def sentencepiece_tokenizer() -> Any:
    """A tokenizer like Llama 2's and Mistral's: words, and a token for each byte as fallback."""
    vocabulary = {f"<0x{byte:02X}>": byte for byte in range(256)}
    for word in ("\u2581a", "b", "c\u2581", "é"):
        vocabulary[word] = len(vocabulary)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token=SPECIAL[0])
    tokenizer.chat_template = template("tiny")
    return tokenizer


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize("fast", [True, False])
def test_pieces_add_up_to_the_text_of_all_tokens(kind: str, fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    form = ChatFormat(byte_tokenizer(template("tiny")) if kind == "bytes" else sentencepiece_tokenizer())
    assert len(form.byte_tokens) == (256 if kind == "sentencepiece" else 0)
    if not fast:
        monkeypatch.setattr(ChatFormat, "fast_tokenizer", None)
    rng = random.Random(3)
    common = [form.encode("A")[0], *form.encode("é漢"), *form.stop_token_ids, *range(256, form.vocabulary_size)]
    early = 0
    for _ in range(600):
        tokens = [rng.choice([rng.randrange(form.vocabulary_size), *common]) for _ in range(rng.randint(1, 12))]
        stream, out = TextStream(form, ()), ""
        for at, token in enumerate(tokens):
            out += stream.feed([token], last=at + 1 == len(tokens))
            early += bool(out) and at + 1 < len(tokens)
        assert out == form.decode(tokens), tokens
    assert early > 600  # text must not be held back until the end
