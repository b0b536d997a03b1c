"""``auto``: bfloat16 where the machine multiplies it, float32 elsewhere."""

from __future__ import annotations

from typing import Any

import pytest

from tau2_lightning.run import native_types
from tau2_lightning.run.compose import load_config
from tau2_lightning.run.notices import notices

REAL = ["actor=smollm2", "domain=retail", "econfig.user=scripted"]
BROUGHT = ["actor.path=FOLDER", "domain=retail", "econfig.user=scripted"]


def machine(monkeypatch: pytest.MonkeyPatch, *, processor: bool, gpu: bool) -> None:
    monkeypatch.setattr(native_types, "cpu_multiplies_bfloat16", lambda: processor)
    monkeypatch.setattr(native_types, "gpus_are_here", lambda: gpu)


def test_the_flags_of_the_processor_say_what_torch_says_of_it(monkeypatch: pytest.MonkeyPatch):
    """On x86: without AVX-512 and without AVX-NE-CONVERT it does not multiply bfloat16."""
    said = native_types.cpu_multiplies_bfloat16()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "DEFAULT")  # then torch is asked
    assert native_types.cpu_multiplies_bfloat16() is said


@pytest.mark.parametrize(
    ("processor", "gpu", "accelerator", "want"),
    [
        (True, False, "auto", ("bfloat16", "bf16", "bf16")),
        (False, False, "auto", ("float32", "fp32", "fp32")),
        (False, True, "auto", ("bfloat16", "bf16", "bf16")),
        (False, True, "cpu", ("float32", "fp32", "fp32")),
        (True, True, "cpu", ("bfloat16", "bf16", "bf16")),
    ],
)
def test_auto_is_what_the_chosen_device_computes_well(
    monkeypatch: pytest.MonkeyPatch, processor: bool, gpu: bool, accelerator: str, want: tuple[str, str, str]
):
    machine(monkeypatch, processor=processor, gpu=gpu)
    config = load_config([*REAL, f"trainer.accelerator={accelerator}"], check=False)
    assert (config.actor.dtype, config.actor.precision, config.warm_start.precision) == want


def test_what_is_given_holds_and_is_said_where_it_is_slow(monkeypatch: pytest.MonkeyPatch):
    given = [*REAL, "actor.dtype=bfloat16", "actor.precision=bf16"]
    machine(monkeypatch, processor=False, gpu=False)
    config = load_config(given, check=False)
    assert (config.actor.dtype, config.actor.precision) == ("bfloat16", "bf16")
    (notice,) = notices(config)
    assert "actor.dtype=bfloat16, actor.precision=bf16" in notice
    assert "warm_start" not in notice  # it is auto, so it is fp32 here
    machine(monkeypatch, processor=True, gpu=False)
    assert not notices(load_config(given, check=False))


@pytest.mark.parametrize(
    ("words", "fast"),
    [
        ([], False),
        (["scheduler.type=slurm", "cluster.n_nodes=2"], True),
        (["scheduler.type=slurm", "cluster.n_gpus_per_node=0"], False),
        (["cluster.gpu_memory_gib=79"], True),
        (["actor.dtype=bfloat16", "actor.precision=bf16"], True),
    ],
)
def test_a_model_that_the_user_brings_is_computed_in_what_suits_the_machine(
    monkeypatch: pytest.MonkeyPatch, words: list[str], fast: bool
):
    machine(monkeypatch, processor=False, gpu=False)
    config = load_config([*BROUGHT, *words], check=False)
    assert (config.actor.dtype, config.actor.precision) == (("bfloat16", "bf16") if fast else ("float32", "fp32"))
    told = f"engine in {config.actor.dtype}, trainer in {config.actor.precision} (bfloat16 is computed in "
    assert native_types.types_in_words(config).startswith(told)


def test_words_that_are_no_type_are_still_refused():
    with pytest.raises(Exception, match=r"actor\.dtype"):
        load_config([*REAL, "actor.dtype=autos"], check=False)


def test_a_section_that_is_no_section_is_left_to_the_schema():
    raw: dict[str, Any] = {"actor": "auto", "trainer": None}
    assert native_types.with_native_types(raw) == raw
