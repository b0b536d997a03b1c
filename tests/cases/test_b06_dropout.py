"""B6: with dropout in the configuration, the trainer's log-probs and gradients are those of the model without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PhiConfig, PhiForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.strategy.tiny import VOCAB, clipped_loss, connected, tiny_batches


def model(name: str, dropout: float) -> Any:
    torch.manual_seed(0)
    if name == "qwen3":
        return Qwen3ForCausalLM(
            Qwen3Config(
                vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                num_key_value_heads=2, head_dim=8, attention_dropout=dropout,
            )
        )  # fmt: skip
    if name == "phi":
        return PhiForCausalLM(
            PhiConfig(
                vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                resid_pdrop=dropout, embd_pdrop=dropout, attention_dropout=dropout,
            )
        )  # fmt: skip
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, resid_pdrop=dropout, embd_pdrop=dropout,
            attn_pdrop=dropout,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", ["qwen3", "phi", "gpt2"])
def test_training_computes_the_model_without_dropout(name: str) -> None:
    results = []
    for dropout in (0.0, 0.5):
        compute = connected("d1")
        trained = compute.parallelize(model(name, dropout)).train()
        batches = tiny_batches(2, packed=compute.packs)
        compute.forward_backward(batches, clipped_loss)
        gradients = torch.cat([p.grad.flatten() for p in trained.parameters() if p.grad is not None])
        logprobs = [output.logprobs for output in compute.token_outputs(batches)]
        results.append((torch.cat([each.flatten() for each in logprobs]), gradients))
        config: Any = trained.config
        kept = {key: value for key, value in config.to_dict().items() if "drop" in key}
        assert dropout in kept.values(), "the exported configuration must keep the user's dropout"
    for plain, dropped in zip(*results, strict=True):
        torch.testing.assert_close(dropped, plain, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["qwen3", "phi", "gpt2"])
def test_the_control_is_another_model_in_every_pass(name: str) -> None:
    """Control: an unchanged model of transformers in training mode applies dropout, so two passes differ."""
    tokens = torch.arange(60)[None]
    noisy = model(name, 0.5).train()
    assert not torch.equal(noisy(input_ids=tokens).logits, noisy(input_ids=tokens).logits)
