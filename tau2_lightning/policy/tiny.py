"""The embedded default policy, made from nothing: a tiny Qwen3 with its own tokenizer and chat template.

The result is an ordinary Hugging Face folder that transformers and vLLM load like any other model. Its chat template
renders the ticket or the user's messages and the tool results, but neither the policy text nor the tools' schemas: such
a model learns a domain's procedure from experience and reads no rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tau2_lightning.errors import ConfigError, Violation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SIZES: Mapping[str, Mapping[str, int]] = MappingProxyType(
    {
        "s": {
            "num_hidden_layers": 3,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_attention_heads": 4,
            "head_dim": 32,
        },
        "m": {
            "num_hidden_layers": 4,
            "hidden_size": 192,
            "intermediate_size": 576,
            "num_attention_heads": 6,
            "head_dim": 32,
        },
        "l": {
            "num_hidden_layers": 5,
            "hidden_size": 256,
            "intermediate_size": 896,
            "num_attention_heads": 4,
            "head_dim": 64,
        },
    }
)
"""Shapes by name: about 0.8, 2.1 and 4.8 million parameters with 2048 tokens. All have one key-value head. Engines
support only some head dimensions, among them 32 and 64."""

END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
SPECIAL_TOKENS = (PADDING, "<|im_start|>", END_OF_TURN)

# Strings that JSON calls and ChatML repeat become one token each: a call without arguments is four tokens instead of
# twenty. None starts with <|im_end|>: a sampled end of turn must be the same token as a rendered one, because the
# proxy appends what follows it to what was sampled.
STRUCTURE = (
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    '<tool_call>\n{"name": "',
    '", "arguments": {}}\n</tool_call>',
    '", "arguments": {',
    '", "arguments": ',
    "}}\n</tool_call>",
    "}\n</tool_call>",
    "<|im_start|>user\n",
    "\n<|im_start|>user\n",
    "\n<|im_start|>assistant\n",
    "\n<|im_start|>user\n<tool_response>\n",
    "\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
)

# Merges may span words (as in SuperBPE, Liu et al. 2025), but neither lines nor the items of a JSON object. So a result
# that a domain repeats ("Airplane Mode: ON", "status": "Active") is one token: a telecom episode has 140 tokens instead
# of 530 with merges within words, and a decision depends on one token instead of several.
_PIECES = r'"[^"\n]*": (?:"[^"\n]*"|[^,"\n\[\]{}]+)(?:, )?|[^\n"]+\n?|\n|"'
_MAX_TOKEN_CHARACTERS = 96
_MIN_FREQUENCY = 10  # rarer merges would be tokens without enough examples to learn their embedding from
_VOCAB_MULTIPLE = 64  # embeddings stay divisible by every tensor-parallel degree


def chat_template() -> str:
    """The tiny policy's chat template: ChatML with Hermes tool calls, rendered append-only."""
    return Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8").strip()


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on ``texts`` and attach the chat template.

    ``vocab_size`` bounds the vocabulary, special and structural tokens included; the result is padded with reserved
    tokens to a multiple of 64. Deterministic in ``texts``. Raises ConfigError when ``vocab_size`` cannot hold the 256
    bytes and the fixed tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fixed = len(SPECIAL_TOKENS) + len(STRUCTURE)
    least = -(-(256 + fixed) // _VOCAB_MULTIPLE) * _VOCAB_MULTIPLE
    if vocab_size < least:
        problem = f"too small for 256 bytes and {fixed} fixed tokens"
        raise ConfigError([Violation("warm_start.vocab_size", vocab_size, problem, f"Use at least {least}")])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size // _VOCAB_MULTIPLE * _VOCAB_MULTIPLE - fixed,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=_MAX_TOKEN_CHARACTERS,
        min_frequency=_MIN_FREQUENCY,
        show_progress=False,
    )
    # Encoding splits at the fixed tokens before it merges, so training must, too.
    fixed_texts = sorted((*SPECIAL_TOKENS, *STRUCTURE), key=len, reverse=True)
    cut = re.compile("|".join(map(re.escape, fixed_texts)))
    bpe.train_from_iterator((piece for text in texts for piece in cut.split(text) if piece), trainer)
    bpe.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIAL_TOKENS])
    bpe.add_tokens([AddedToken(text, normalized=False) for text in STRUCTURE])
    missing = -bpe.get_vocab_size() % _VOCAB_MULTIPLE
    bpe.add_special_tokens([AddedToken(f"<|reserved_{i}|>", special=True, normalized=False) for i in range(missing)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TURN, pad_token=PADDING, clean_up_tokenization_spaces=False
    )
    tokenizer.chat_template = chat_template()
    return tokenizer


def tiny_config(tokenizer: PreTrainedTokenizerFast, size: str = "s", max_position_embeddings: int = 4096) -> Any:
    """The Qwen3 configuration of a tiny policy for ``tokenizer``. Raises ConfigError for an unknown ``size``."""
    from transformers import Qwen3Config

    if size not in SIZES:
        raise ConfigError([Violation("warm_start.size", size, "no such size", f"One of {', '.join(SIZES)}")])
    return Qwen3Config(
        vocab_size=len(tokenizer),
        num_key_value_heads=1,
        max_position_embeddings=max_position_embeddings,
        tie_word_embeddings=True,
        initializer_range=0.02,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SIZES[size],
    )


def build_tiny_policy(
    path: Path | str,
    texts: Iterable[str],
    *,
    seed: int = 0,
    size: str = "s",
    vocab_size: int = 2048,
    max_position_embeddings: int = 4096,
) -> Path:
    """Write an untrained tiny policy (float32 weights, tokenizer, chat template) to the folder ``path``.

    ``texts`` is what the tokenizer is trained on: rendered demonstrations and the domain's own text. The same
    arguments give the same files. Returns ``path``. Raises ConfigError for an unknown size or too small a vocabulary.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    path = Path(path)
    tokenizer = train_tokenizer(texts, vocab_size)
    config = tiny_config(tokenizer, size, max_position_embeddings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
