"""`ArchonCompute` in one process: against transformers itself, and the layouts that it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tau2_lightning.config.allocation import ParallelSpec
from tau2_lightning.errors import ConfigError
from tau2_lightning.strategy.compute import ArchonCompute
from tau2_lightning.strategy.outputs import TokenOutputs
from tests.strategy.distributed import fork
from tests.strategy.tiny import clipped_loss, connected, full_gradients, share, tiny_batches, tiny_model


def transformers_outputs(
    model: Any, mb: Mapping[str, Any], temperature: float = 1.0, dtype: torch.dtype = torch.float32
) -> TokenOutputs:
    """The plain computation: all logits, row by row without padding."""
    logprobs = torch.zeros(mb["labels"].shape, device=mb["labels"].device, dtype=dtype)
    entropy = torch.zeros_like(logprobs)
    for row in range(len(mb["labels"])):
        length = int(mb["input_ids"][row].count_nonzero())
        logits = model(input_ids=mb["input_ids"][row : row + 1, :length], use_cache=False).logits[0].to(dtype)
        every = torch.log_softmax(logits / temperature, -1)
        picked = every.gather(-1, mb["labels"][row, :length, None])[:, 0]
        mask = mb["loss_mask"][row, :length]
        logprobs[row, :length] = picked * mask
        entropy[row, :length] = -(every.exp() * every).sum(-1) * mask
    return TokenOutputs(logprobs, entropy)


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_padded_rows_equal_unpadded_transformers(family: str) -> None:
    compute, model = connected("d1"), tiny_model(family=family)
    compute.parallelize(model)
    batches = tiny_batches()
    for got, mb in zip(compute.token_outputs(batches, temperature=0.8), batches, strict=True):
        want = transformers_outputs(model, mb, 0.8)
        torch.testing.assert_close(got.logprobs, want.logprobs.detach(), atol=5e-6, rtol=0)
        torch.testing.assert_close(got.entropy, want.entropy.detach(), atol=5e-6, rtol=0)


def test_gradients_equal_transformers_and_accumulate() -> None:
    compute, oracle = connected("d1"), tiny_model()
    model = compute.parallelize(tiny_model())
    batches = tiny_batches()
    for mb in batches:
        clipped_loss(transformers_outputs(oracle, mb), mb)[0].backward()
    first = compute.forward_backward(batches[:2], clipped_loss)
    second = compute.forward_backward(batches[2:], clipped_loss)
    assert not first.loss.requires_grad
    assert float(first.metrics["tokens"] + second.metrics["tokens"]) == float(batches[0]["n_tokens"])
    wanted = dict(oracle.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-7, rtol=1e-5)
    norm = torch.nn.utils.clip_grad_norm_(oracle.parameters(), 0.01)
    torch.testing.assert_close(compute.clip_grad_norm(0.01), norm)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name].grad, atol=1e-8, rtol=1e-5)


def test_evaluation_leaves_no_trace() -> None:
    compute = connected("d1")
    model = compute.parallelize(tiny_model())
    with torch.inference_mode():
        compute.forward_backward(tiny_batches(), clipped_loss, train=False)
    assert all(parameter.grad is None for parameter in model.parameters())
    compute.forward_backward(tiny_batches(), clipped_loss)  # tensors of the evaluation do not interfere
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_one_process_returns_the_model_itself_without_a_process_group() -> None:
    compute, model = connected("d1p1t1"), tiny_model()
    assert compute.parallelize(model) is model
    assert not torch.distributed.is_initialized()
    weights = [pair for bucket in compute.iter_full_weights(5_000) for pair in bucket]
    assert [name for name, _ in weights] == [name for name, _ in model.named_parameters()]
    assert all(tensor.data_ptr() == dict(model.named_parameters())[name].data_ptr() for name, tensor in weights)


def test_buckets_are_bounded() -> None:
    compute = connected("d1")
    compute.parallelize(tiny_model())
    for bucket in compute.iter_full_weights(20_000):
        assert len(bucket) == 1 or sum(tensor.nbytes for _, tensor in bucket) <= 20_000


@pytest.mark.parametrize("tied", [True, False])
def test_export_reads_back(tmp_path: Path, tied: bool) -> None:
    from transformers import AutoModelForCausalLM

    compute, model = connected("d1"), tiny_model(tied=tied)
    compute.parallelize(model)
    compute.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    for (name, want), (_, got) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(want, got), name
    other = connected("d1")
    other.parallelize(tmp_path)  # the export is a model source too
    a, b = (each.token_outputs(tiny_batches())[0].logprobs for each in (compute, other))
    assert torch.equal(a, b)


def test_an_export_has_the_dtype_of_the_folder_that_training_started_from(tmp_path: Path) -> None:
    """Parameters are trained in float32; a bfloat16 policy leaves in bfloat16, rounded as the engine rounds it."""
    from safetensors.torch import load_file
    from transformers import AutoConfig

    tiny_model(tied=True).to(torch.bfloat16).save_pretrained(tmp_path / "start")
    compute = connected("d1", precision="bf16")
    model = compute.parallelize(tmp_path / "start")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-3)
    compute.save_pretrained(tmp_path / "end")
    written = load_file(tmp_path / "end" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(written[name], parameter.to(torch.bfloat16)), name
    assert AutoConfig.from_pretrained(tmp_path / "end").dtype == torch.bfloat16


def export(path: str) -> None:
    compute = connected("d2p2")
    compute.parallelize(tiny_model(tied=True))
    compute.save_pretrained(path)


def test_export_of_a_pipeline_reads_back(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    fork(4, export, str(tmp_path))
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in tiny_model(tied=True).state_dict().items())


def bf16(text: str) -> float:
    compute = connected(text, precision="bf16")
    model = compute.parallelize(tiny_model())
    loss = compute.forward_backward(share(tiny_batches(), compute), clipped_loss).loss
    for parameter in model.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32
    return float(loss)


def test_bf16_computes_near_fp32_and_keeps_fp32_parameters() -> None:
    exact = connected("d1")
    exact.parallelize(tiny_model())
    want = float(exact.forward_backward(tiny_batches(), clipped_loss).loss)
    one = bf16("d1")
    assert one != want and abs(one - want) < 5e-3
    assert abs(fork(4, bf16, "d2p2")[0] - want) < 5e-3


def recomputed(text: str, mode: str) -> tuple[int, dict[str, torch.Tensor]]:
    """Saved tensors' bytes in forward, and full gradients."""
    compute = connected(text, activation_checkpointing=mode)
    compute.parallelize(tiny_model(tied=True)).train()
    kept = [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[0] += tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute.forward_backward(share(tiny_batches(), compute), clipped_loss)
    return kept[0], full_gradients(compute)


@pytest.mark.parametrize("text", ["d1", "p2", pytest.param("d2t2", marks=pytest.mark.slow)])
def test_activation_checkpointing_changes_memory_not_gradients(text: str) -> None:
    world = ParallelSpec.parse(text).world
    plain, again = (fork(world, recomputed, text, each) for each in ("none", "full"))
    for (_, want), (_, got) in zip(plain, again, strict=True):
        assert all(float((got[name] - value).abs().max()) < 1e-7 for name, value in want.items())
    assert again[0][0] < 0.9 * plain[0][0] or text != "d1"


@pytest.mark.parametrize(("text", "says"), [("t4", "does not divide the 2 key-value heads"), ("p5", "more than the 4")])
def test_sizes_that_do_not_fit_the_model_are_refused(text: str, says: str) -> None:
    compute = ArchonCompute(ParallelSpec.parse(text))
    with pytest.raises(ConfigError, match=says):
        compute.parallelize(tiny_model())


def test_missing_model_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config.json there"):
        connected("d1").parallelize(tmp_path / "nothing")


def test_computing_before_parallelize_says_so() -> None:
    with pytest.raises(RuntimeError, match="strategy.parallelize"):
        connected("d1").token_outputs(tiny_batches())


def send(length: int) -> bytes:
    compute = connected("d2")
    data = bytes(range(256)) * length if compute.mesh.rank == 0 else None
    return compute.mesh.broadcast_bytes(data)


@pytest.mark.parametrize("length", [0, 3])
def test_bytes_reach_every_rank(length: int) -> None:
    assert fork(2, send, length) == [bytes(range(256)) * length] * 2


def names_differ() -> dict[str, float]:
    compute = connected("d2")
    mine = {"loss": torch.tensor(1.0), f"only_{compute.mesh.rank}": torch.tensor(2.0**24 + compute.mesh.rank)}
    return {name: float(value) for name, value in compute.mesh.sum_scalars(mine).items()}


def test_metrics_known_to_one_rank_only_are_summed_by_name() -> None:
    assert fork(2, names_differ) == [{"loss": 2.0, "only_0": 2.0**24, "only_1": 2.0**24}] * 2
