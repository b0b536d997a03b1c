"""Paths and headers on which the client of an engine and this project's middleware inside vLLM agree."""

from __future__ import annotations

#: vLLM's own route, tokens in and tokens out. `generate.FastGenerate` answers plain requests to it.
GENERATE = "/inference/v1/generate"
#: `cpu_seconds.CpuSeconds`.
CPU_SECONDS = "/cpu_seconds"
#: All routes of `weight_routes.TakeWeights` begin with this.
WEIGHTS = "/tau2-lightning/weights"

#: In the answer of ``/v1/models``: the extension is loaded, so requests may have seeds and deadlines.
SEEDS_HEADER = "x-tau2-lightning-seeds"
#: In a generate request: the seconds after which the server ends it and returns the tokens that it has.
DEADLINE_HEADER = "x-tau2-lightning-deadline"
