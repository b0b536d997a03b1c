"""An estimate of the minutes of a step, from a measurement of one or two seconds on the device at hand.

Measured are the rate of one matrix product with the model's widths, and the rate at which memory is read. From the
first follow the passes of training and the prompts, from the second the tokens that engines sample: each token of a
sequence reads all weights once for all sequences of the engine, and the cache of every sequence. Not counted are the
user's model, tools, weight sync and the checks of parity.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tau2_lightning.config.allocation import AllocationError
from tau2_lightning.config.schema import RunConfig
from tau2_lightning.errors import ConfigError
from tau2_lightning.launch.cluster import placement_of, visible_gpus
from tau2_lightning.policy.loading import load_model_config
from tau2_lightning.rollout.deadlines import Limits
from tau2_lightning.strategy.balance import TRAINED
from tau2_lightning.strategy.families.registry import family_of
from tau2_lightning.strategy.held_parameters import model_without_memory

from .algorithm import instantiate_algorithm
from .device_memory import common_opening, shared_tokens
from .forecast import KV_SHARE, kv_bytes_per_token
from .plan_validation import validation_episodes

#: Of the rate of products alone, what layers with their norms and attention reach (docs/lab/gpu.md: .25 to .36 of the
#: datasheet's rate, of which products alone reach .75).
REACHED = 0.4
SECONDS = 0.4


@dataclass(frozen=True)
class Work:
    """One step, or one validation: ``passes`` is the FLOP of training, ``prompts`` that of prompts in engines;
    ``sampled`` tokens, ``rows`` of ``length`` tokens on average."""

    passes: float
    prompts: float
    sampled: float
    rows: int
    length: float


@dataclass(frozen=True)
class Rates:
    """Measured on ``device``: FLOP/s of a product, bytes/s of reading."""

    device: str
    flops: float
    bytes: float


def work_of(config: RunConfig, policy: Path | str, model: Any) -> Work:
    """The work of one step, or of the validation.

    A row is its opening and a quarter of what the context leaves; three tenths of it are sampled. A forward pass
    takes 2 FLOP for each weight and token and 2 x (width of all heads) x length for attention in each layer; backward
    takes twice, and layers that are computed again once more.
    """
    a, g = config.actor, config.gconfig
    family = family_of(model)
    assert family is not None
    trains = config.mode == "train"
    known = 0 if trains else sum(validation_episodes(config).values())
    rows = known or config.train_dataset.batch_size * g.n_samples
    opening, shared = common_opening(config, policy), shared_tokens(config, policy, model)
    length = opening + KV_SHARE * (g.max_tokens - opening)
    unique = shared + rows * (length - shared)
    served = opening + rows * (length - opening)  # engines cache prefixes, whatever the trainer does
    head = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    layers = model.num_hidden_layers
    token = layers * (
        2 * family.layer_products(model) * model.hidden_size + 2 * head * model.num_attention_heads * length
    )
    forward = unique * token + 2 * TRAINED * unique * model.vocab_size * model.hidden_size
    algorithm = instantiate_algorithm(config)
    again = {"none": 0.0, "selective": 0.5, "full": 1.0}[a.activation_checkpointing]
    passes = 3 + again + algorithm.needs_proximal + algorithm.needs_reference
    return Work(passes * forward * trains, served * token, TRAINED * rows * length, rows, length)


def time_lines(config: RunConfig, policy: Path | str) -> Iterator[str]:
    """The plan's line about the minutes of a step, or of the validation; for GPUs that are not here, about its work."""
    try:
        placement = placement_of(config)
        ranks = placement.allocation.training_spec().world
        model = load_model_config(policy)
        if family_of(model) is None:
            return
        work = work_of(config, policy, model)
    except (AllocationError, ConfigError, OSError, ValueError, AttributeError):
        return
    trains, per_gpu = config.mode == "train", work.passes / ranks
    said = f"{'a step' if trains else 'the validation'}: {work.rows} rows of about {work.length:,.0f} tokens"
    said += f", {work.passes / 1e15:.2f} PFLOP of training" if trains else ""
    if not placement.on_cpu and not visible_gpus(config):
        minutes = (
            f"{per_gpu / 100e12 / 60:.1f} minutes if each of the {ranks} GPU(s) of the trainer reaches 100 TFLOP/s"
        )
        unknown = f"{minutes}. Their rate cannot be measured here; the time of rollouts is not known either"
        yield f"{said}: {unknown if trains else 'the rate of their GPUs cannot be measured here'}"
        return
    rates = measured(model, "cuda" if visible_gpus(config) and not placement.on_cpu else "cpu", config.actor.precision)
    shared = 1 if not placement.on_cpu else ranks  # processes of one CPU share its rate
    training = per_gpu * shared / (rates.flops * REACHED)
    rollouts = sampling_seconds(config, model, work, rates)
    how = (
        f"measured now on {rates.device}: a product at {rates.flops / 1e12:.2f} TFLOP/s, of which layers reach about "
        f"{REACHED:.0%}, and memory read at {rates.bytes / 1e9:.0f} GB/s; users, tools and weight sync are not counted"
    )
    parts = f" = {in_words(rollouts)} of rollouts + {in_words(training)} of training" if trains else ""
    yield f"{said}: about {in_words(training + rollouts)}{parts} ({how})"


def in_words(seconds: float) -> str:
    """A duration in the unit that fits it, up to days."""
    for size, unit in ((86_400, "days"), (3_600, "hours")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds / 60:.1f} minutes"


def sampling_seconds(config: RunConfig, model: Any, work: Work, rates: Rates) -> float:
    """Seconds in which the engines sample the tokens of a step."""
    limits = Limits.of(config)
    size = 4 if config.actor.dtype == "float32" else 2
    weights = float(size * sum(parameter.numel() for parameter in model_without_memory(model).parameters()))
    at_once = max(1.0, min(limits.concurrent / limits.engines, config.rollout.max_num_seqs, work.rows / limits.engines))
    cache = (kv_bytes_per_token(model, config.actor.dtype) or 0) * work.length
    step = (weights + at_once * cache) / rates.bytes
    return work.sampled / (limits.engines * at_once) * step + work.prompts / (limits.engines * rates.flops * REACHED)


def measured(model: Any, device: str, precision: str) -> Rates:
    """Time a product with the model's widths, and a copy of memory, for `SECONDS` each."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    inner = getattr(model, "intermediate_size", None) or 4 * model.hidden_size
    right = torch.randn(model.hidden_size, inner, device=device).to(dtype)
    products = 0.0
    for rows in (8192,) if device == "cuda" else (4, 32, 256):
        left = torch.randn(rows, model.hidden_size, device=device).to(dtype)
        seconds = _seconds(partial(torch.matmul, left, right), device)
        products = 2.0 * rows * right.numel() / seconds
        # A processor that computes bfloat16 in software takes half a minute for 256 rows, at the same rate.
        if seconds > SECONDS / 4:
            break
    block = torch.empty(1 << (28 if device == "cuda" else 27), dtype=torch.uint8, device=device)
    other = torch.empty_like(block)
    copied = 2.0 * block.nbytes / _seconds(lambda: other.copy_(block), device)
    name = torch.cuda.get_device_name(0) if device == "cuda" else "this machine's CPU"
    return Rates(name, products, copied)


def _seconds(work: Callable[[], object], device: str) -> float:
    work()
    count, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < SECONDS:
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        count += 1
    return (time.perf_counter() - begun) / count
