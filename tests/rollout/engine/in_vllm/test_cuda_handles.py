"""CUDA IPC handles: conversion to JSON and back, refusal of invalid ones, and (on a GPU) mapping in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tau2_lightning.rollout.engine.in_vllm.cuda_handles import decode_handle, encode_handle, open_shared, share

on_gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def arguments() -> tuple[object, ...]:
    """Arguments as ``reduce_tensor`` returns them for a CUDA tensor."""
    return (
        torch.Tensor, torch.Size([2, 3]), (3, 1), 4, torch.storage.TypedStorage, torch.bfloat16, 0,
        b"\x00handle\xff", 512, 128, False, b"counter", 8, b"event\x00", True,
    )  # fmt: skip


def test_fields_survive_json() -> None:
    sent = arguments()
    fields = json.loads(json.dumps(encode_handle("w", sent, "GPU-1")))
    assert fields["name"] == "w" and fields["gpu"] == "GPU-1" and fields["dtype"] == "bfloat16"
    back = decode_handle(fields, 3)
    assert back[6] == 3  # the receiver's index of the same GPU
    assert (*back[:6], 0, *back[7:]) == sent


def test_a_made_up_dtype_is_refused() -> None:
    fields = encode_handle("w", arguments(), "GPU-1")
    for name in ("nothing", "load", "Tensor"):
        with pytest.raises(ValueError, match=f"w: no dtype '{name}'"):
            decode_handle({**fields, "dtype": name}, 0)


OTHER = """
import json, sys, torch
from tau2_lightning.rollout.engine.in_vllm.cuda_handles import open_shared
torch.cuda.init()
for name, tensor in open_shared(json.loads(sys.stdin.readline()), 0):
    print(json.dumps([name, str(tensor.dtype), list(tensor.shape), tensor.float().cpu().flatten().tolist()]))
    tensor.fill_(7)
    del tensor
torch.cuda.synchronize()
"""


class TestOnAGpu:
    pytestmark = on_gpu

    def test_another_process_maps_the_same_memory(self) -> None:
        torch.manual_seed(0)
        storage = torch.randn(1000, device="cuda")
        tensors = {
            "whole": torch.randn(3, 5, device="cuda"),
            "bf16": torch.randn(4, device="cuda").bfloat16(),
            "view": storage[100:112].view(3, 4),  # at an offset in a larger block
        }
        sent = {name: tensor.float().cpu().flatten().tolist() for name, tensor in tensors.items()}
        line = json.dumps(share(tensors)) + "\n"
        done = subprocess.run(
            [sys.executable, "-c", OTHER], input=line, capture_output=True, text=True, timeout=120, check=False,
            cwd=Path(__file__).parents[4],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        got = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        assert [(name, shape) for name, _, shape, _ in got] == [(n, list(t.shape)) for n, t in tensors.items()]
        assert {name: values for name, _, _, values in got} == sent
        torch.cuda.synchronize()
        assert all(bool((tensor == 7).all()) for tensor in tensors.values())  # the memory is shared, not copied
        assert float(storage[99]) != 7 and float(storage[112]) != 7

    def test_handles_of_another_gpu_are_refused(self) -> None:
        handles = share({"w": torch.ones(2, device="cuda")})
        handles[0]["gpu"] = "GPU-elsewhere"
        with pytest.raises(ValueError, match="w is on GPU GPU-elsewhere, this worker on .*: use shm or nccl"):
            open_shared(handles, 0)
