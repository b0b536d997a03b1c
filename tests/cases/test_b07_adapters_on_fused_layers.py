"""B7: adapters on fused layers are planned under the names that the engine takes, or refused before a start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tau2_lightning.strategy.lora import LoRASettings
from tests.cases.policies import planned, policy_of
from tests.strategy.families.models import build
from tests.strategy.tiny import connected

LORA = ("actor.lora.r=4", "actor.handwritten_elementwise=false")


def vllms_modules(module: str, model: str) -> dict[str, list[str]]:
    """``packed_modules_mapping`` as vLLM's source has it: what a layer of the engine is called in an adapter."""
    import ast
    import importlib.util

    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    tree = ast.parse((Path(spec.origin).parent / "model_executor/models" / f"{module}.py").read_text())
    (found,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == model]
    for node in found.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "packed_modules_mapping":
            return dict(ast.literal_eval(node.value))
    raise AssertionError(f"{model} has no packed modules")


def test_phi3_adapters_have_the_names_that_vllm_expects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, why = planned(capsys, policy_of(build("Phi-3, Phi-4"), tmp_path / "policy"), *LORA)
    assert code == 0, why
    compute = connected("d1", lora=LoRASettings(4, 8.0))
    compute.parallelize(tmp_path / "policy")
    compute.save_adapter(tmp_path / "adapter")
    names = set(json.loads((tmp_path / "adapter/adapter_config.json").read_text())["target_modules"])
    assert names == {"qkv_proj", "gate_up_proj", "o_proj", "down_proj"}
    packed = vllms_modules("phi3", "Phi3ForCausalLM")
    assert {"qkv_proj", "gate_up_proj"} <= {name for parts in packed.values() for name in parts}
    tensors = load_file(tmp_path / "adapter/adapter_model.safetensors")
    assert {name.split(".")[-3] for name in tensors} == names


def test_glm4_adapters_on_the_fused_layer_are_refused_unless_merged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = policy_of(build("GLM-4"), tmp_path)
    code, why = planned(capsys, folder, *LORA)
    assert code == 2 and len(why) == 1
    assert "actor.lora.sync='adapter': the engine takes no adapter on gate_up_proj of 'glm4' models" in why[0]
    assert "Set actor.lora.sync=merged, or name other layers in target_modules" in why[0]
    assert "gate_up_proj" not in {name for parts in vllms_modules("glm4", "Glm4ForCausalLM").values() for name in parts}
    for more in ("actor.lora.sync=merged", "actor.lora.target_modules=[q_proj,down_proj]"):
        assert planned(capsys, folder, *LORA, more) == (0, []), more


@pytest.mark.parametrize("name", ["Qwen3-MoE", "gpt-oss"])
def test_all_linear_does_not_leave_fused_experts_out_in_silence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = policy_of(build(name), tmp_path)
    code, why = planned(capsys, folder, *LORA)
    assert code == 2 and len(why) == 1
    assert "actor.lora.target_modules=['all-linear']" in why[0] and "experts.gate_up_proj" in why[0]
    assert "they would be left out. Name the layers: k_proj, o_proj, q_proj, v_proj" in why[0]
    assert planned(capsys, folder, *LORA, "actor.lora.target_modules=[q_proj,v_proj]") == (0, [])


def test_linear_attention_takes_merged_adapters_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tau2_lightning.run.rules.missing_imports", lambda *_: [])  # as where torchvision is installed
    folder = policy_of(build("Qwen3.5"), tmp_path)
    code, why = planned(capsys, folder, *LORA)
    assert code == 2 and len(why) == 1, "four layers for one reason are one line"
    assert "takes no adapter on in_proj_a, in_proj_b, in_proj_qkv, in_proj_z of 'qwen3_5_text' models" in why[0]
    assert planned(capsys, folder, *LORA, "actor.lora.sync=merged") == (0, [])
