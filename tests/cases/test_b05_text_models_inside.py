"""B5: a model that also reads images trains its text model under the engine's names, or is refused by name."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.policy.loading import load_model_config
from tau2_lightning.strategy.checkpoint import fingerprint
from tau2_lightning.strategy.fitting import refusal
from tests.cases.policies import planned, policy_described, policy_of
from tests.strategy.distributed import fork
from tests.strategy.families.models import CONFIGS, batches, furthest
from tests.strategy.test_compute import transformers_outputs
from tests.strategy.tiny import clipped_loss, connected, full_gradients, share

CLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16}
NO_IMAGE = {"image_token_id": 600, "video_token_id": 601}


def composite(name: str) -> Any:
    """A model with a text model inside, all weights random."""
    torch.manual_seed(0)
    if name == "gemma3":
        siglip = t.SiglipVisionConfig(patch_size=8, vision_use_head=False, **CLIP)
        config = t.Gemma3Config(
            text_config=CONFIGS["Gemma 3"](8), vision_config=siglip, mm_tokens_per_image=4, image_token_index=600
        )
        model: Any = t.Gemma3ForConditionalGeneration(config)
    elif name == "mistral3":
        pixtral = t.PixtralVisionConfig(patch_size=8, **CLIP)
        config = t.Mistral3Config(text_config=CONFIGS["Mistral"](8), vision_config=pixtral, image_token_index=600)
        model = t.Mistral3ForConditionalGeneration(config)
    else:
        vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
        config = t.Qwen3_5Config(text_config=CONFIGS["Qwen3.5"](8).to_dict(), vision_config=vision, **NO_IMAGE)
        model = t.Qwen3_5ForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


NAMES = ["gemma3", "mistral3", "qwen3_5"]


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    model = composite(request.param)
    return model, policy_of(model, tmp_path_factory.mktemp(request.param))


def test_the_text_model_trains_and_leaves_under_its_engines_names(case: tuple[Any, Path], tmp_path: Path) -> None:
    whole, folder = case
    compute = connected("d1")
    model = compute.parallelize(folder)
    want = [transformers_outputs(whole, mb).logprobs.detach() for mb in batches()]
    assert furthest([out.logprobs for out in compute.token_outputs(batches())], want) < 1e-5
    compute.forward_backward(batches(), clipped_loss)
    assert all(parameter.grad is not None for parameter in model.parameters())
    stored = load_file(folder / "model.safetensors")
    sent = {name: tensor for bucket in compute.iter_full_weights() for name, tensor in bucket}
    assert sent and all(torch.equal(tensor, stored[name]) for name, tensor in sent.items())
    vision = {name for name in stored if "vision" in name or "visual" in name or "projector" in name}
    assert vision and stored.keys() - sent.keys() == vision, "every tensor of the text model is sent, and no other"
    compute.save_pretrained(tmp_path)
    again = t.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert furthest([transformers_outputs(again, mb).logprobs.detach() for mb in batches()], want) < 1e-5
    described = json.loads((tmp_path / "config.json").read_text())
    assert described["architectures"] == [type(again).__name__], "what vLLM serves an export by"
    assert fingerprint(again.config) == fingerprint(load_model_config(folder)), "an export resumes the same model"


def step(folder: str, layout: str) -> dict[str, Any]:
    compute = connected(layout)
    compute.parallelize(folder)
    loss = compute.forward_backward(share(batches(), compute), clipped_loss).loss
    sent = [name for bucket in compute.iter_full_weights() for name, _ in bucket]
    return {"loss": float(loss), "gradients": full_gradients(compute), "sent": sent}


def test_every_layout_reads_the_text_model_from_the_same_files(case: tuple[Any, Path]) -> None:
    _, folder = case
    (one,) = fork(1, step, str(folder), "d1")
    for layout in ("d2", "p2"):
        ranks = fork(ParallelSpec.parse(layout).world, step, str(folder), layout)
        assert sorted(ranks[0]["sent"]) == sorted(one["sent"])
        for rank in ranks:
            assert rank["loss"] == pytest.approx(one["loss"], abs=1e-6)
            for name, gradient in rank["gradients"].items():
                known = one["gradients"].get(name, one["gradients"]["model.embed_tokens.weight"])
                assert furthest([gradient], [known]) <= 2e-6, name


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_both_names_that_files_have_had_are_read_and_sent(prefix: str, tmp_path: Path) -> None:
    """transformers has named the text model's tensors differently before and since 4.52; vLLM reads both."""
    file = policy_of(composite("gemma3"), tmp_path) / "model.safetensors"
    stored = {_renamed(name, prefix): tensor for name, tensor in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    compute = connected("d1")
    compute.parallelize(tmp_path)
    sent = {name for bucket in compute.iter_full_weights() for name, _ in bucket}
    assert sent and all(name.startswith(prefix) for name in sent) and sent <= stored.keys()


def _renamed(name: str, prefix: str) -> str:
    for before in ("model.language_model.", "language_model.model."):
        if name.startswith(before):
            return prefix + name.removeprefix(before)
    return name


DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
LLAMA4 = {"model_type": "llama4", "text_config": {"model_type": "llama4_text"}, "vision_config": {}}
QWEN3_VL = {"model_type": "qwen3_vl", "text_config": {"model_type": "qwen3_vl_text"}, "vision_config": {}}


@pytest.mark.parametrize("changes", [LLAMA4, QWEN3_VL], ids=["llama4", "qwen3_vl"])
def test_a_text_model_of_no_known_family_is_refused_by_name(
    changes: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, why = planned(capsys, policy_described(tmp_path, {**changes, "architectures": None}))
    name = changes["model_type"]
    (told,) = [line for line in why if "actor.path" in line]
    assert code == 2
    assert f"a '{name}' model cannot be trained: the text model inside it ({name}_text) is none of qwen2, " in told


def test_the_refusal_reads_no_weights_and_takes_under_two_seconds(tmp_path: Path) -> None:
    """The tower of a big model: 36 layers of 4096, as Qwen3-8B. Nothing of it is allocated."""
    from tau2_lightning.run.compose import load_config
    from tau2_lightning.strategy.preflight import model_violations

    big = {
        "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "layer_types": ["full_attention"] * 36,
        "max_window_layers": 36,
    }  # fmt: skip
    folder = policy_described(tmp_path, big)
    words = [f"actor.path={folder}", "actor.lora.r=8", "allocation_mode=vllm:d1+archon:d2e2"]
    config = load_config(words, check=False)
    list(model_violations(config, folder))  # imports
    begun = time.monotonic()
    found = list(model_violations(config, folder))
    assert time.monotonic() - begun < 2.0
    assert any("e cannot lay out 'qwen3' models: it has no experts" in each.problem for each in found)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (t.Gemma3TextConfig(final_logit_softcapping=30.0), "final_logit_softcapping is not provided"),
        (t.Gemma3TextConfig(use_bidirectional_attention=True), "attend to later ones"),
        (t.T5GemmaConfig(), "encoder-decoder"),
        (t.GptOssConfig(quantization_config={"quant_method": "mxfp4"}), "quantised (mxfp4)"),
        (t.Qwen3Config(), None),
        (t.Gemma3Config(), None),
        (t.Gemma3TextConfig(rope_parameters={"full_attention": DYNAMIC, "sliding_attention": DYNAMIC}), "(dynamic)"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_says_why(config: Any, says: str | None) -> None:
    found = refusal(config)
    assert found is None if says is None else found is not None and says in found
