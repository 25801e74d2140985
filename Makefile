# `make help` lists the targets. PYTHON chooses the interpreter (3.11 or newer) that .venv is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKERS := -n 2 --dist loadfile --no-loadscope-reorder
STUDY ?= quick
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /\t/' | awk -F'\t' '{printf "  make %-14s %s\n", $$1, $$2}'

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: Python 3.11 or newer is needed, got $$($(PYTHON) --version); run make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(VENV)/.ready  ## make .venv and install everything into it

train: setup  ## train HEM beside CE on real 8x8 digits, about a minute; needs no data
	$(BIN)/python -m hem.quickstart

tensorboard: setup  ## show the curves of all runs
	$(BIN)/tensorboard --logdir runs --host localhost

test: lint types  ## lint, types, doctests and all tests
	$(BIN)/python -m pytest $(WORKERS)

test-processors: setup  ## the tests as other processors compute: with AVX2, with SSE, on two threads
	TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/.cache/avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(BIN)/python -m pytest $(WORKERS)
	TORCHINDUCTOR_CACHE_DIR=$(CURDIR)/.cache/sse ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 $(BIN)/python -m pytest $(WORKERS)
	OMP_NUM_THREADS=2 $(BIN)/python -m pytest $(WORKERS)

quick: setup  ## the tests without those that train whole runs
	$(BIN)/python -m pytest $(WORKERS) -m 'not slow'

lint: setup  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: setup  ## mypy, strict
	$(BIN)/mypy

docs: setup  ## the site, strictly, into site/: dead links, undocumented names and code that fails break it
	$(BIN)/python -m pytest -q tests/test_docs.py --deselect tests/test_docs.py::test_site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: setup  ## the site on localhost:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr localhost:8000

examples: setup  ## HEM in other people's frameworks, which are installed for it
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[examples]'
	$(BIN)/python -m pytest -q tests/test_examples.py

build: setup  ## wheel and sdist, into dist/
	$(BIN)/python -m build --no-isolation

study: setup  ## a study and the page of it: STUDY=quick (no download) or another of configs/study
	$(BIN)/hem study $(STUDY); code=$$?; $(BIN)/hem report runs/$(STUDY) && exit $$code

study-killed: setup  ## a study killed with -9 at 20 random moments, against an undisturbed one
	$(BIN)/python benchmarks/killed_study.py

bench: setup  ## what each loss costs beside cross_entropy, as ratios
	$(BIN)/python benchmarks/losses.py

bench-train: setup  ## images per second of training beside a bare loop and the usual recipes (HEM_DATA says where)
	$(BIN)/python benchmarks/train.py --data mnist cifar10

gpu: setup  ## what only a card can show, in eight minutes: correctness, speed, CIFAR-10 if HEM_DATA has it; GPU="--device cpu --quick" to try
	$(BIN)/python benchmarks/gpu.py $(GPU)

cluster-check: setup  ## runs over network namespaces and a SLURM of this machine (docs/clusters.md); root, half an hour
	bash tests/cluster/namespaces.sh
	bash tests/cluster/slurm.sh

clean:  ## remove what the tools leave behind, the environment included; runs/ stays
	rm -rf $(VENV) .mypy_cache .ruff_cache .cache *.egg-info build dist site

.PHONY: help setup train tensorboard test test-processors quick lint types docs docs-serve examples build study study-killed bench bench-train gpu cluster-check clean
