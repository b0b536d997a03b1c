"""Experts spread over the d x c x t ranks of a stage: against plain transformers in float64; memory, export, adapters,
checkpoints that move between layouts, and the process groups of layouts that are too large to run here."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from tau2_lightning.config.allocation import Allocation, ParallelSpec
from tau2_lightning.strategy.checkpoint import load
from tau2_lightning.strategy.expert_parallel import ExpertShard
from tau2_lightning.strategy.lora import LoRASettings
from tau2_lightning.strategy.optimizer import adamw
from tau2_lightning.strategy.rank_tables import expert_table, groups, rank_table
from tau2_lightning.strategy.saving import CheckpointSaver
from tau2_lightning.strategy.weights import persistent_tensors
from tests.strategy.distributed import fork
from tests.strategy.test_compute import transformers_outputs
from tests.strategy.tiny import clipped_loss, connected, full_gradients, share, tiny_batches, tiny_model

FAMILY = "qwen3_moe_mixed"  # three layers with experts, one with an MLP
LORA = LoRASettings(4, 8.0, ("q_proj", "k_proj", "v_proj", "o_proj"))


# ---- gradients ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exact() -> dict[str, Any]:
    """transformers and autograd alone, all in float64, row by row without padding."""
    model = tiny_model(family=FAMILY).double()
    model.config._experts_implementation = "eager"  # the grouped product has no float64
    model.model.rotary_emb.inv_freq = model.model.rotary_emb.inv_freq.double()
    loss = torch.zeros((), dtype=torch.float64)
    for mb in tiny_batches():
        loss = loss + clipped_loss(transformers_outputs(model, mb, dtype=torch.float64), mb)[0]
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": loss, "gradients": gradients, "norm": torch.nn.utils.get_total_norm(gradients.values())}


def work(text: str, replicate: int = 1) -> dict[str, Any]:
    compute = connected(text, replicate=replicate)
    model = compute.parallelize(tiny_model(family=FAMILY))
    loss = compute.forward_backward(share(tiny_batches(), compute), clipped_loss).loss
    held: list[Any] = [p for module in model.modules() if isinstance(module, ExpertShard) for p in module.parameters()]
    return {
        "loss": loss, "gradients": full_gradients(compute), "norm": compute.clip_grad_norm(None),
        "held": sum(parameter.to_local().numel() for parameter in held), "all": sum(p.numel() for p in held),
    }  # fmt: skip


def check_against(exact: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    seen = set()
    for rank in ranks:
        assert abs(float(rank["loss"] - exact["loss"])) < 1e-6 and abs(float(rank["norm"] - exact["norm"])) < 1e-6
        for name, gradient in rank["gradients"].items():
            assert float((gradient - exact["gradients"][name]).abs().max()) <= 1e-6, name
        seen |= set(rank["gradients"])
    assert seen == set(exact["gradients"])


SLOW = [("d2t2e2", 2), ("d2t2", 1), ("p2t2e2", 1), ("d2p2e2", 1), ("c2e2", 1)]


@pytest.mark.parametrize(
    ("text", "replicate"),
    [("t2e2", 1), ("d2t2e2", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
)
def test_layouts_compute_the_gradients_of_plain_transformers(text: str, replicate: int, exact: dict[str, Any]) -> None:
    spec = ParallelSpec.parse(text)
    ranks = fork(spec.world, work, text, replicate)
    check_against(exact, ranks)
    routers = {name for name in exact["gradients"] if name.endswith("mlp.gate.weight")}
    assert len(routers) == 3 and min(float(exact["gradients"][name].abs().max()) for name in routers) > 1e-4
    if spec.e * spec.t > 1:  # every expert parameter lies on one rank, on as many as there are copies
        assert spec.p > 1 or sum(rank["held"] for rank in ranks) == replicate * ranks[0]["all"]
        assert len({rank["held"] for rank in ranks if rank["all"] == ranks[0]["all"]}) == 1


def fused_step(text: str) -> dict[str, Any]:
    """A step of the fused optimizer that GPUs use: its parameters lie on different meshes."""
    compute = connected(text)
    model = compute.parallelize(tiny_model(family=FAMILY))
    compute.forward_backward(share(tiny_batches(), compute), clipped_loss)
    torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4, fused=text != "d1").step()
    return {name: tensor.clone() for bucket in compute.iter_full_weights() for name, tensor in bucket}


def test_the_fused_optimizer_takes_parameters_of_different_meshes() -> None:
    one, four = fork(1, fused_step, "d1")[0], fork(4, fused_step, "d2t2e2")[0]
    assert four.keys() == one.keys()
    assert max(float((four[name] - tensor).abs().max()) for name, tensor in one.items()) < 2e-6


def bf16(text: str) -> tuple[float, dict[str, torch.Tensor]]:
    compute = connected(text, precision="bf16", activation_checkpointing="full")
    model = compute.parallelize(tiny_model(family=FAMILY)).train()
    loss = compute.forward_backward(share(tiny_batches(), compute), clipped_loss).loss
    parameters: list[Any] = list(model.parameters())
    assert {p.dtype for p in parameters} == {p.grad.dtype for p in parameters} == {torch.float32}
    return float(loss), full_gradients(compute)


def test_bf16_and_recomputation_stay_near(exact: dict[str, Any]) -> None:
    for loss, gradients in fork(2, bf16, "t2e2"):
        assert abs(loss - float(exact["loss"])) < 5e-3
        for name, gradient in gradients.items():
            want = exact["gradients"][name].float()
            assert float(torch.nn.functional.cosine_similarity(gradient.flatten(), want.flatten(), dim=0)) > 0.98, name


# ---- adapters, export, checkpoints ----------------------------------------------------------------------------------


def adapted(text: str, folder: str) -> dict[str, Any]:
    compute = connected(text, lora=LORA)
    model = compute.parallelize(tiny_model(family=FAMILY)).train()
    batches = share(tiny_batches(), compute)
    first = compute.forward_backward(batches, clipped_loss).loss
    gradients = full_gradients(compute)
    adamw(model.parameters(), lr=1e-2, eps=1e-4).step()
    after = compute.forward_backward(batches, clipped_loss, train=False).loss
    compute.save_pretrained(folder)
    return {"losses": (float(first), float(after)), "gradients": gradients, "base": compute.base_norm()}


def test_adapters_on_attention_train_under_t_and_e(tmp_path: Path) -> None:
    (one,) = fork(1, adapted, "d1", str(tmp_path / "one"))
    assert not any("experts" in name or "gate.adapter" in name for name in one["gradients"])
    for rank in fork(2, adapted, "t2e2", str(tmp_path / "two")):
        assert rank["losses"] == pytest.approx(one["losses"], abs=2e-6) and one["losses"][0] != one["losses"][1]
        assert rank["base"] == pytest.approx(one["base"], rel=1e-6)
        assert rank["gradients"].keys() == one["gradients"].keys()
        for name, gradient in rank["gradients"].items():
            assert float((gradient - one["gradients"][name]).abs().max()) <= 1e-6, name
    files = [load_file(tmp_path / name / "adapter" / "adapter_model.safetensors") for name in ("one", "two")]
    assert files[0].keys() == files[1].keys() and files[0]


def export(text: str, folder: str) -> None:
    compute = connected(text)
    compute.parallelize(tiny_model(family=FAMILY))
    compute.save_pretrained(folder)


@pytest.mark.parametrize("text", ["t2e2", pytest.param("p2t2e2", marks=pytest.mark.slow)])
def test_an_export_has_the_tensors_of_a_published_folder(text: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    tiny_model(family=FAMILY).save_pretrained(theirs)
    fork(ParallelSpec.parse(text).world, export, text, str(ours))
    want, got = (load_file(folder / "model.safetensors") for folder in (theirs, ours))
    assert got.keys() == want.keys() and "model.layers.0.mlp.experts.3.up_proj.weight" in got
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    again = AutoModelForCausalLM.from_pretrained(ours, dtype=torch.float32)
    assert all(
        torch.equal(value, again.state_dict()[name]) for name, value in tiny_model(family=FAMILY).state_dict().items()
    )


def trained(text: str, folder: str, resume: str | None, steps: int) -> dict[str, Any]:
    """``steps`` steps from a checkpoint or from the start, then a checkpoint. Returns the losses and the weights."""
    compute = connected(text)
    model = compute.parallelize(tiny_model(family=FAMILY))
    tensors = persistent_tensors(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, eps=1e-4)
    names = {id(tensor): name for name, tensor in tensors.items()}
    if resume is not None:
        load(Path(resume), tensors, [optimizer], names, {})
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(float(compute.forward_backward(share(tiny_batches(), compute), clipped_loss).loss))
        optimizer.step()
    CheckpointSaver().save(Path(folder), tensors, [optimizer], names, {})
    weights = {name: tensor.clone() for bucket in compute.iter_full_weights() for name, tensor in bucket}
    return {"losses": losses, "weights": weights}


SLOW_MOVES = [("d2t2e4", "p2t2e2"), ("d1", "d2t2e4"), ("d2t2e2", "d2e2")]


@pytest.mark.parametrize(
    ("first", "second"), [("d2t2e2", "t2e2"), *(pytest.param(*move, marks=pytest.mark.slow) for move in SLOW_MOVES)]
)
def test_a_checkpoint_moves_between_layouts(first: str, second: str, tmp_path: Path) -> None:
    """Two steps in one layout and two in another are four in one process, Adam's moments included."""
    (whole,) = fork(1, trained, "d1", str(tmp_path / "whole.ckpt"), None, 4)
    parts: list[float] = []
    weights: dict[str, torch.Tensor] = {}
    resume = None
    for number, text in enumerate((first, second)):
        folder = str(tmp_path / f"{number}.ckpt")
        rank = fork(ParallelSpec.parse(text).world, trained, text, folder, resume, 2)[0]
        parts, weights, resume = parts + rank["losses"], rank["weights"], folder
    assert parts == pytest.approx(whole["losses"], abs=2e-6) and len(set(parts)) == 4
    for name, tensor in whole["weights"].items():
        assert float((weights[name] - tensor).abs().max()) < 1e-5, name


# ---- long pipelines: the groups of every rank -----------------------------------------------------------------------

RECIPES = ["megatron:(attn:d1p12t4|ffn:d1p12e4)", "megatron:(attn:d4p4t2|ffn:d2p4e4)"]


@pytest.mark.parametrize("text", RECIPES)
def test_every_rank_of_areals_recipes_has_its_groups(text: str) -> None:
    spec = Allocation.parse(text).training_spec()
    place = {}
    for rank in range(spec.world):
        rest, t = divmod(rank, spec.t)
        rest, c = divmod(rest, spec.c)
        p, d = divmod(rest, spec.d)
        place[rank] = (p, d, c, t)
    table = rank_table(spec)
    assert all(int(table[place[rank]]) == rank for rank in place)
    for dimension in range(4):
        made = groups(table, dimension)
        assert sorted(rank for group in made for rank in group) == list(range(spec.world))
        for group in made:
            others = {tuple(place[rank][axis] for axis in range(4) if axis != dimension) for rank in group}
            assert len(others) == 1 and [place[rank][dimension] for rank in group] == list(range(len(group)))
    experts = expert_table(spec)
    for group in groups(experts, 3):  # all experts of a stage: e consecutive ranks of it
        assert group == list(range(group[0], group[0] + spec.e)) and len({place[rank][0] for rank in group}) == 1
    for group in groups(experts, 2):  # the same experts: ranks of one stage with the same place in their groups
        assert len({place[rank][0] for rank in group}) == 1 and len({rank % spec.e for rank in group}) == 1
        assert len(group) == spec.d * spec.c * spec.t // spec.e


def test_the_235b_recipe_in_numbers() -> None:
    spec = Allocation.parse(RECIPES[0]).training_spec()
    assert groups(rank_table(spec), 3)[:2] == [[0, 1, 2, 3], [4, 5, 6, 7]]  # t: on one node
    assert groups(rank_table(spec), 0)[1] == list(range(1, 48, 4))  # p: stages lie four ranks apart
    assert groups(expert_table(spec), 3) == groups(rank_table(spec), 3)  # e4 borrows t4
    assert expert_table(spec).shape == (12, 1, 1, 4)


@pytest.mark.parametrize(("d", "c", "t", "e"), [(4, 1, 2, 4), (2, 2, 2, 2), (1, 2, 4, 8), (3, 1, 2, 1), (2, 1, 1, 2)])
def test_every_token_of_a_stage_meets_every_expert_once(d: int, c: int, t: int, e: int) -> None:
    spec = ParallelSpec(d=d, p=2, t=t, c=c, e=e)
    table = expert_table(spec)
    for stage, copy, rest in product(range(2), range(table.shape[1]), range(table.shape[2])):
        assert len(set(table[stage, copy, rest].tolist())) == e
    for stage in range(2):
        assert sorted(table[stage].flatten().tolist()) == sorted(rank_table(spec)[stage].flatten().tolist())


def test_copies_of_experts_follow_those_of_the_other_parameters() -> None:
    spec = ParallelSpec(d=4, t=2, e=2)
    assert [tuple(expert_table(spec, copies).shape[1:3]) for copies in (1, 2, 4)] == [(1, 4), (2, 2), (4, 1)]
    assert tuple(expert_table(ParallelSpec(d=4, e=4), 4).shape[1:3]) == (1, 1)  # one rank holds each expert already


def replicated(text: str) -> bool:
    compute = connected(text)
    model = compute.parallelize(tiny_model())
    return any(isinstance(module, ExpertShard) for module in model.modules()) or any(
        isinstance(p, DTensor) and "ep" in (p.device_mesh.mesh_dim_names or ()) for p in model.parameters()
    )


def test_a_dense_model_gets_no_expert_groups() -> None:
    assert fork(2, replicated, "t2") == [False, False]
