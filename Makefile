# make install: all that the shell needs.  make demo: a real model learns a real task.  make test: the gate.  make test-system, make bench: what needs more.
# Everything is installed into .venv (server, CLI, tests) and .venv-train (torch, transformers, peft, trl) by hash-locked pins.

PYTHON ?= python3
CONTROL := .venv/bin/python
TRAIN := .venv-train/bin/python
MODEL := .cache/models/smollm2
# Two threads everywhere: figures from machines with other core counts are then comparable.
export OMP_NUM_THREADS ?= 2
export PEFTSMITH_TRAIN_PYTHON ?= $(CURDIR)/$(TRAIN)
export PEFTSMITH_ADAPTERS_PYTHON ?= $(CURDIR)/.venv-adapters/bin/python
export PEFTSMITH_TEST_MODEL ?= $(CURDIR)/$(MODEL)
# Tests start many Pythons, and each would compile the package and the tests again.
unexport PYTHONDONTWRITEBYTECODE
PIP := -m pip install --quiet --disable-pip-version-check

.PHONY: demo install test test-fast test-slow test-training test-system bench check format docs pins manifest architectures packing train-env adapters-env demo-model clean

demo: .venv/ready .venv-train/ready $(MODEL)/model.safetensors
	$(CONTROL) examples/support-tickets/demo.py

install: .venv/ready .venv-train/ready $(MODEL)/model.safetensors

test: test-fast test-slow test-training

test-fast: .venv/ready check
	$(CONTROL) -m pytest -q -n 2 --dist worksteal -m "not slow and not training and not system"

test-slow: .venv/ready
	$(CONTROL) -m pytest -q -n 2 --dist worksteal -m "slow and not training and not system"

test-training: .venv/ready .venv-train/ready $(MODEL)/model.safetensors
	$(CONTROL) -m pytest -q -m "training and not system"
	@echo "Not proven by this tier: real Claude Code clients, cold start (make test-system); figures (make bench)."

test-system: .venv/ready .venv-train/ready .venv-adapters/ready $(MODEL)/model.safetensors
	$(CONTROL) -m pytest -q -m system

bench: .venv/ready .venv-train/ready $(MODEL)/model.safetensors
	$(CONTROL) benchmarks/startup.py
	$(CONTROL) benchmarks/traps.py tests/cases
	$(CONTROL) benchmarks/audit_speed.py
	$(TRAIN) benchmarks/targets.py
	$(CONTROL) benchmarks/estimate_speed.py
	$(CONTROL) benchmarks/throughput.py
	$(CONTROL) benchmarks/first_run.py --results .cache/first_run.json --document
	$(CONTROL) benchmarks/project_speed.py
	PEFTSMITH_LABEL_CASES=20 $(CONTROL) -m pytest -q tests/data/test_labels_against_trainers.py

check: .venv/ready
	$(CONTROL) -m ruff check .
	$(CONTROL) -m ruff format --check .
	$(CONTROL) -m mypy

format: .venv/ready
	$(CONTROL) -m ruff check --fix .
	$(CONTROL) -m ruff format .

docs: .venv/ready
	$(CONTROL) -m peftsmith.knowledge.document

manifest: .venv/ready
	$(CONTROL) -m peftsmith.server.manifest

# What config.json implies for every model type of the installed transformers: about half an hour, then look at the changes.
architectures: .venv-train/ready
	cd mcp_server && $(abspath $(TRAIN)) -m peftsmith.worker.catalogue peftsmith/knowledge/architectures.jsonl

# On which architectures packed rows stay apart: some minutes, then look at the changes.
packing: .venv-train/ready
	cd mcp_server && $(abspath $(TRAIN)) -m peftsmith.worker.apart peftsmith/knowledge/packing.json

# Needs uv. Look at the difference before committing it: these are the versions that the tests prove.
pins:
	requirements/make.sh

train-env: .venv-train/ready
adapters-env: .venv-adapters/ready
demo-model: $(MODEL)/model.safetensors

.venv/ready: requirements/dev.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(CONTROL) $(PIP) --require-hashes -r requirements/dev.txt
	$(CONTROL) $(PIP) --no-build-isolation --no-deps --editable .
	touch $@

# torch comes first and by version only: its build differs by machine (CPU, CUDA, Metal), so one hash cannot fit all.
.venv-train/ready: requirements/train.txt requirements/demo.txt
	$(PYTHON) -m venv .venv-train
	$(TRAIN) $(PIP) torch==2.13.0
	$(TRAIN) $(PIP) --require-hashes --no-deps -r requirements/train.txt -r requirements/demo.txt
	touch $@

.venv-adapters/ready: requirements/bottleneck.txt
	$(PYTHON) -m venv .venv-adapters
	.venv-adapters/bin/python $(PIP) torch==2.13.0
	.venv-adapters/bin/python $(PIP) --require-hashes --no-deps -r requirements/bottleneck.txt
	touch $@

$(MODEL)/model.safetensors: .venv-train/ready
	$(TRAIN) examples/support-tickets/base_model.py $(MODEL)

clean:
	rm -rf .venv .venv-train .cache demo-run
