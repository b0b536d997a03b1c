"""The experts that a mixture-of-experts model chose, from vLLM on CPU.

vLLM can return them itself (``--enable-return-routed-experts``), but only with its second model runner, which needs
Triton. These two classes connect the same parts of vLLM to the first model runner, which CPUs use. The parts are: hooks
in the routers; a store of the experts of every block in the prefix cache, so that a cached prompt has the experts that
its keys and values were computed with; and the transport of the records to a request's output. ``--scheduler-cls`` and
``--worker-cls`` select the classes. They are written for vLLM 0.32.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.distributed.aux_output_connector.connector import AuxOutputSchedulerConnector
from vllm.distributed.aux_output_connector.worker import AuxOutputWorkerConnector
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.worker.cpu_worker import CPUWorker


class RoutedExpertsScheduler(Scheduler):
    """Tells the worker which rows a request needs, and adds them to its output."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.aux_output_connector = AuxOutputSchedulerConnector()


class RoutedExpertsWorker(CPUWorker):
    """Records the experts of every step."""

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        super().initialize_from_config(kv_cache_config)
        self.recorder = AuxOutputWorkerConnector(
            vllm_config=self.vllm_config, model=self.model_runner.get_model(), kv_cache_config=kv_cache_config
        )
        self.recorded: Any = None

    def execute_model(self, scheduler_output: Any) -> Any:
        self.recorder.begin_step(scheduler_output.aux_output_connector_metadata)
        output = super().execute_model(scheduler_output)
        if output is None:  # computed; the tokens are sampled next
            batch = self.model_runner.input_batch
            count = batch.num_reqs
            rows = SimpleNamespace(
                req_ids=batch.req_ids[:count],
                query_start_loc_np=self.model_runner.query_start_loc.np[: count + 1].copy(),
                num_computed_tokens_np=batch.num_computed_tokens_cpu[:count].copy(),
            )
            self.recorded = self.recorder.prepare_output(rows)
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        output = super().sample_tokens(grammar_output)
        recorded, self.recorded = self.recorded, None
        if recorded is not None:
            sampled = np.array([len(tokens) for tokens in output.sampled_token_ids], np.int64)
            recorded.enqueue_cpu_copy(sampled, np.zeros_like(sampled))
            output.aux_output_connector_output = recorded.process_output()
        return output
