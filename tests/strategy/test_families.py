"""Known and unknown families. Unknown ones train with d, and with c if attention allows it; p and t are refused."""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tau2_lightning.strategy
from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.strategy.families.decoder import DENSE_PLAN, dense_products
from tau2_lightning.strategy.families.family import Family
from tau2_lightning.strategy.families.registry import FAMILIES, family_of
from tests.strategy.distributed import fork
from tests.strategy.test_compute import transformers_outputs
from tests.strategy.tiny import VOCAB, clipped_loss, connected, full_gradients, share, tiny_batches

SIZES: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}


def build(family: str) -> Any:
    import transformers as t

    torch.manual_seed(0)
    makers = {
        "llama": lambda: t.LlamaForCausalLM(t.LlamaConfig(intermediate_size=64, num_key_value_heads=2, **SIZES)),
        "gpt2": lambda: t.GPT2LMHeadModel(  # learned positions, Conv1D, tied
            t.GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
        ),
        "seed_oss": lambda: t.SeedOssForCausalLM(
            t.SeedOssConfig(
                intermediate_size=64,
                num_key_value_heads=2,
                head_dim=8,
                attention_dropout=0,
                residual_dropout=0,
                **SIZES,
            )
        ),
        "gpt_neox": lambda: t.GPTNeoXForCausalLM(t.GPTNeoXConfig(intermediate_size=64, **SIZES)),
        "gemma2": lambda: t.Gemma2ForCausalLM(
            t.Gemma2Config(intermediate_size=64, num_key_value_heads=2, head_dim=8, **SIZES)
        ),
        "bloom": lambda: t.BloomForCausalLM(t.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)),
    }
    return makers[family]()


def work(text: str, family: str) -> dict[str, Any]:
    compute = connected(text)
    compute.parallelize(build(family))
    batches = share(tiny_batches(packed=compute.packs), compute)
    loss = compute.forward_backward(batches, clipped_loss).loss
    return {"loss": float(loss), "gradients": full_gradients(compute), "norm": float(compute.clip_grad_norm(None))}


@pytest.fixture(scope="module")
def plain() -> dict[str, dict[str, Any]]:
    """Results of transformers and autograd alone."""
    found: dict[str, dict[str, Any]] = {}
    for family in ("llama", "gpt2", "gpt_neox", "bloom", "seed_oss"):
        model = build(family)
        losses = [clipped_loss(transformers_outputs(model, mb), mb)[0] for mb in tiny_batches()]
        torch.stack(losses).sum().backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        norm = torch.nn.utils.get_total_norm(gradients.values())
        found[family] = {"loss": float(torch.stack(losses).sum()), "gradients": gradients, "norm": float(norm)}
    return found


CASES = [("gpt2", "d2"), ("llama", "c2")]
SLOW = [("gpt2", "c2"), ("llama", "d2"), ("gpt_neox", "d2"), ("gpt_neox", "c2"), ("gpt2", "d2c2")]


@pytest.mark.parametrize(("family", "text"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)])
def test_data_and_context_ranks_train_any_causal_lm(family: str, text: str, plain: dict[str, dict[str, Any]]) -> None:
    want = plain[family]
    for rank in fork(ParallelSpec.parse(text).world, work, text, family):
        assert abs(rank["loss"] - want["loss"]) < 1e-6 and abs(rank["norm"] - want["norm"]) < 1e-6
        assert rank["gradients"].keys() == want["gradients"].keys()
        for name, gradient in rank["gradients"].items():
            assert float((gradient - want["gradients"][name]).abs().max()) <= 1e-6, name


def test_attention_of_its_own_trains_with_d(plain: dict[str, dict[str, Any]]) -> None:
    assert abs(fork(2, work, "d2", "bloom")[0]["norm"] - plain["bloom"]["norm"]) < 1e-6


@pytest.mark.parametrize(
    ("family", "text", "says"),
    [
        ("seed_oss", "p2", "p cannot lay out 'seed_oss' models: its family is not one whose layers.*Use d"),
        ("gpt2", "t2", "t cannot lay out 'gpt2' models.*Use d, c"),
        ("bloom", "c2", "c cannot lay out 'bloom' models.*Use d only"),  # alibi: no attention interface
        ("gemma2", "c2", "c cannot lay out 'gemma2' models.*Use d only"),  # capped logits, sliding windows
    ],
)
def test_what_cannot_be_split_says_so(family: str, text: str, says: str) -> None:
    with pytest.raises(RuntimeError, match=says):
        fork(2, work, text, family)


# ---- the registry ---------------------------------------------------------------------------------------------------

SOURCES = Path(tau2_lightning.strategy.__file__).parent


def test_a_family_is_found_by_its_model_type_and_has_a_folder() -> None:
    for name, family in FAMILIES.items():
        assert family_of(SimpleNamespace(model_type=name)) is family and family.model_type == name
        assert (SOURCES / "families" / name / "__init__.py").is_file()
    folders = {path.parent.name for path in SOURCES.glob("families/*/__init__.py")}
    assert folders == set(FAMILIES)
    assert family_of(SimpleNamespace(model_type="gpt2")) is None


def test_no_code_outside_the_families_names_one() -> None:
    for path in SOURCES.rglob("*.py"):
        if path.is_relative_to(SOURCES / "families"):
            continue
        tree = ast.parse(path.read_text())
        strings = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and type(node.value) is str}
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not (strings | names) & set(FAMILIES), path
        # Only families may name layers, too.
        assert not {text for text in strings if "embed_tokens" in text or "lm_head" in text}, path


def work_as_a_new_family(text: str) -> dict[str, Any]:
    FAMILIES["seed_oss"] = Family("seed_oss", dense_products, layers_apart=True, tensor=DENSE_PLAN)
    return work(text, "seed_oss")


@pytest.mark.parametrize("text", ["t2", "p2"])
def test_one_line_in_the_registry_brings_a_family_to_a_layout(text: str, plain: dict[str, dict[str, Any]]) -> None:
    """A layout that is refused above for lack of a plan (`what_cannot_be_split`) trains exactly with one."""
    want = plain["seed_oss"]
    for rank in fork(2, work_as_a_new_family, text):
        assert abs(rank["loss"] - want["loss"]) < 1e-6 and abs(rank["norm"] - want["norm"]) < 1e-6
        for name, gradient in rank["gradients"].items():
            assert float((gradient - want["gradients"][name]).abs().max()) <= 1e-6, name


def test_experts_of_an_unknown_family_are_refused() -> None:
    with pytest.raises(RuntimeError, match="e cannot lay out 'gpt2' models"):
        fork(2, work, "d2e2", "gpt2")
