"""Text <-> token ids of text that already carries its special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class TokenCodec:
    """Encodes and decodes with one Hugging Face tokenizer.

    ``fast`` is the Rust tokenizer behind it, None for a slow one: a direct call costs a tenth of the wrapper's, which
    prepares batches and padding for one short string. ``vocabulary_size`` is one more than the largest token id.
    ``byte_tokens`` are the tokens of single bytes that SentencePiece vocabularies fall back to (``<0x41>``).
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.fast = _private_copy(tokenizer)
        vocabulary = tokenizer.get_vocab()
        self.vocabulary_size: int = max(vocabulary.values()) + 1
        byte_names = (f"<0x{byte:02X}>" for byte in range(256))
        self.byte_tokens = frozenset(vocabulary[name] for name in byte_names if name in vocabulary)

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; no special token is added."""
        if self.fast is not None:
            ids: list[int] = self.fast.encode(text, add_special_tokens=False).ids
            return ids
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of ``token_ids``, special tokens included."""
        if self.fast is not None:
            text: str = self.fast.decode(list(token_ids), skip_special_tokens=False)
            return text
        return str(
            self._tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        )


def _private_copy(tokenizer: Any) -> Any:
    """The Rust tokenizer without its truncation and padding; a copy, because others may use the original."""
    core = getattr(tokenizer, "backend_tokenizer", None)
    if core is None:
        return None
    core = type(core).from_str(core.to_str())
    core.no_truncation()
    core.no_padding()
    return core
