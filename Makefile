# Every verb makes what it needs: `make demo` and `make test` each work on a bare machine.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo up down test test-full smoke-pythons check fix parity bench bench-train bench-scale bench-synthesize bench-data bench-evaluate bench-gate bench-start bench-busy attack gpu-check images clean

PYTHON := .venv/bin/python
ARGS ?=
PYTEST = $(PYTHON) -m pytest $(ARGS)
# Two processes, since most tests hold one processor; one where a test is looked into: ARGS="-n 0 --pdb".
IN_TWO = $(PYTHON) -m pytest -n 2 --dist worksteal $(ARGS)

help: ## This list
	@echo "make VERB    (ARGS='…' goes to pytest: make test ARGS='-k gate -x')"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv with everything in it; at once where nothing changed
	@bash infra/local/setup.sh

demo: setup ## The whole pipeline on this machine: facts in build/demo/summary.json
	.venv/bin/dpoflow run pipelines/configs/demo.yaml --home build/demo --require promote

up: setup ## A team's server on this machine, with reviewers and a promoter; ARGS="--port 5001"
	$(PYTHON) infra/local/up.py up $(ARGS)

down: setup ## Stop it; build/up keeps what there was
	$(PYTHON) infra/local/up.py down

test: setup ## What a change must pass, on CPU
	$(IN_TWO) -m "not full"

test-full: setup ## Every test, and no test may skip
	$(IN_TWO) -p tests.no_skips

check: setup ## Lint, format, types and lock; rewrites nothing
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy --strict
	$(PYTHON) infra/locks/lock.py

fix: setup ## What ruff can mend by itself
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

smoke-pythons: setup ## The tiny pipeline and parity on every other Python here, in build/pythons; ARGS="3.13"
	@bash infra/local/pythons.sh $(ARGS)

parity: setup ## Our losses, gradients and metrics beside those of TRL 1.16, every case
	$(PYTEST) -p tests.no_skips tests/parity

bench-train: setup ## Our training step beside TRL's; build/bench/train.json
	$(PYTHON) -m tests.bench.bench_train $(ARGS)

bench-scale: setup ## Time and memory as pairs grow from 128 to 4,096; build/bench/scale.json
	$(PYTHON) -m tests.bench.bench_scale $(ARGS)

gpu-check: setup ## Parity and the same bench on a GPU; build/bench/train-gpu.json
	@$(PYTHON) -c 'import sys, torch; sys.exit(0 if torch.cuda.is_available() else "make gpu-check: torch finds no GPU here")'
	DPOFLOW_GPU_CHECK=1 $(PYTEST) -p tests.no_skips tests/parity -k float32
	DPOFLOW_GPU_CHECK=1 $(PYTHON) -m tests.bench.bench_train --out build/bench/train-gpu.json $(ARGS)

bench-synthesize: setup ## Judging, its memory, sampling; build/bench/synthesize.json
	$(PYTHON) -m tests.bench.bench_synthesize $(ARGS)

bench-data: setup ## Time and memory of validate on a million pairs; build/bench/data.json
	$(PYTHON) -m tests.bench.bench_data $(ARGS)

bench-evaluate: setup ## Answers beside plain generate, and those kept; build/bench/evaluate.json
	$(PYTHON) -m tests.bench.bench_evaluate $(ARGS)

bench-gate: setup ## Ordinary MLflow writes with the gate and without; build/bench/gate.json
	$(PYTHON) -m tests.bench.bench_gate $(ARGS)

bench-start: setup ## What a run pays for starting its tasks, beside kfp.local; build/bench/start.json
	$(PYTHON) -m tests.bench.bench_start $(ARGS)

bench-busy: setup ## Sampling, training, evaluation beside busy loops; build/bench/busy.json
	$(PYTHON) -m tests.bench.bench_busy $(ARGS)

images: setup ## The container images, by podman or docker; ARGS="cpu --push REGISTRY", "--dry-run"
	$(PYTHON) infra/images/build.py $(ARGS)

attack: setup ## What the gate refuses, tried by every role, and stock MLflow beside it; build/attack.md
	$(PYTHON) -m tests.attack $(ARGS)

bench: setup ## Each program in tests/bench, one after the other
	@shopt -s nullglob; programs=(tests/bench/bench_*.py); \
	if (( $${#programs[@]} == 0 )); then echo "make bench: tests/bench holds no bench_*.py yet"; fi; \
	for program in "$${programs[@]}"; do echo "== $$program"; module=$${program%.py}; $(PYTHON) -m "$${module//\//.}"; done

clean: ## Away with build, dist and caches; .venv and .dpoflow stay
	if [[ -d build/up && -x $(PYTHON) ]]; then $(PYTHON) infra/local/up.py down; fi
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find components pipelines infra tests -name __pycache__ -type d -prune -exec rm -rf {} +
