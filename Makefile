# make quickstart    train and evaluate the embedded judge; set-up included
# make test          lint, then every test; set-up included
#
# PYTHON=python3.12  the interpreter that makes the environment     VENV=.venv     where the environment goes
# TORCH=torch==2.13.0  another torch, at least 2.11                  ARGS="a.b=1"   recipe overrides, or pytest options

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
ARGS ?=

RECIPE := trainer/recipes/quickstart.toml
STAMP := $(VENV)/.installed
IS_SUPPORTED := import sys; sys.exit(sys.version_info < (3, 11))

# One process gets every core, up to eight: beyond that the threads of a model this small mostly wait for each other.
THREADS = $$(n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); if [ "$$n" -gt 8 ]; then echo 8; else echo "$$n"; fi)

.DEFAULT_GOAL := help
.PHONY: help quickstart test lint clean

help:
	@echo "make quickstart   train and evaluate the embedded judge on this machine   (ARGS=\"key=value ...\" overrides the recipe)"
	@echo "make test         lint, then run every test                               (ARGS=\"-k name\" goes to pytest)"
	@echo "make lint         ruff only"
	@echo "make clean        remove caches and build leftovers; keeps runs/ and $(VENV)/"

quickstart: $(STAMP)
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$(THREADS)} \
	    $(VENV)/bin/torchrun --standalone --nproc-per-node 1 trainer/main.py $(RECIPE) $(ARGS)

# A process for every core, of one thread each. worksteal keeps a file in one process, and with it what its tests share,
# until another process has nothing left to do.
test: lint
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n logical --maxprocesses 8 --dist worksteal $(ARGS)

lint: $(STAMP)
	$(VENV)/bin/ruff check .

# The stamp is written last, so an interrupted install is taken up again. A missing, broken or too old environment is
# made anew; --clear only ever empties a directory that is a virtual environment.
$(STAMP): pyproject.toml Makefile
	@$(VENV)/bin/python -c '$(IS_SUPPORTED)' 2>/dev/null && $(VENV)/bin/python -m pip --version >/dev/null 2>&1 || { \
	    command -v "$(PYTHON)" >/dev/null || { echo "error: $(PYTHON) not found; name a Python >= 3.11 with PYTHON=..." >&2; exit 1; }; \
	    "$(PYTHON)" -c '$(IS_SUPPORTED)' || { \
	        echo "error: Python >= 3.11 is needed, $(PYTHON) is $$("$(PYTHON)" --version 2>&1); name another with PYTHON=..." >&2; exit 1; }; \
	    clear=; if [ -e "$(VENV)/pyvenv.cfg" ]; then clear=--clear; fi; \
	    echo "making $(VENV)"; "$(PYTHON)" -m venv $$clear "$(VENV)"; }
	$(VENV)/bin/python -m pip install "$(TORCH)"
	$(VENV)/bin/python -m pip install -e ".[test,plots]"
	@touch $@

clean:
	rm -rf build dist *.egg-info .pytest_cache .hypothesis .ruff_cache
	find patarm_core kernels rollout eval trainer bench tests -name __pycache__ -type d -prune -exec rm -rf {} +
