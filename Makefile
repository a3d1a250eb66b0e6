# The front door. `make reproduce` and `make test` need nothing but Python 3.11 or newer.
RECIPE ?= quick
PYTHON ?= python3
CORES ?= all
VENV := .venv
BIN := $(VENV)/bin
SHELL := /bin/bash
CONFIG :=
SPOILT :=
# Names and folders reach the shell as variables of the environment, never as its text.
export override RECIPE := $(value RECIPE)
export override DATASET := $(value DATASET)
export override WEIGHTS := $(value WEIGHTS)
export override CORES := $(value CORES)
export override PORT := $(value PORT)
SNAKEMAKE = $(BIN)/snakemake --snakefile code/Snakefile $(if $(CONFIG),--config $(CONFIG)) \
	--cores "$$CORES" --rerun-triggers mtime --rerun-incomplete --nolock --quiet rules

.PHONY: help setup data reproduce report notebooks poster dry-run demo test lint bench clean
.DEFAULT_GOAL := help

help:  ## show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'
	@echo "  variables: RECIPE=quick|study|base|scratch|released|paper  DATA_DIR=<folder>  RESULTS_DIR=<folder>  CORES=<n>  PORT=<of the demo>"

# A user without a home to write in, as a number in a container: pip and the libraries keep their
# caches here. Snakemake asks for a name too: the number is one.
ifeq ($(shell test -w "$$HOME" && echo yes),)
export HOME := $(CURDIR)/$(VENV)
endif
ifeq ($(LOGNAME)$(USER),)
export USER := $(shell id -u)
endif

# Made again, from nothing: a .venv whose install was cut off, and one that does not run the code of
# this folder, since the folder was copied or moved, or its Python is gone or another by now.
# Found, not imported: a mistake in the code is no reason to install again.
RUNS_HERE = import os, importlib.util as i; print(os.path.samefile(*i.find_spec("distilbert_kit").submodule_search_locations, "code/distilbert_kit"))
ifneq ($(wildcard $(VENV)/.installing),)
SPOILT := spoilt
else ifneq ($(wildcard $(VENV)/.installed),)
SPOILT := $(if $(filter True,$(shell $(BIN)/python -c '$(RUNS_HERE)' 2>/dev/null)),,spoilt)
endif

.PHONY: spoilt
spoilt:
	rm -rf $(VENV)

$(VENV)/.installed: requirements.txt code/constraints.txt code/pyproject.toml $(SPOILT)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, \
	this is %d.%d: name one, as in make PYTHON=python3.12" % sys.version_info[:2])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	{ echo "Python's venv with pip is needed: install it, as in apt install python3-venv" >&2; exit 1; }
	@cat /proc/meminfo /sys/fs/cgroup/memory.max 2>/dev/null | awk '$$1 == "MemTotal:" {kb = $$2} \
	NF == 1 && $$1 + 0 && $$1 / 1024 < kb {kb = $$1 / 1024} END {if (kb && kb < 7500000) printf \
	"warning: this machine has %.1f GB of memory; 8 are needed: a step may be killed\n", kb / 1e6}' >&2
	@mkdir -p $(VENV) && touch $(VENV)/.installing
	@($(PYTHON) -m venv $(VENV) && \
	$(BIN)/python -m pip install --quiet --upgrade pip && \
	$(BIN)/python -m pip install --quiet -r requirements.txt) || (rm -f $(VENV)/.installing; exit 1)
	@rm $(VENV)/.installing && touch $@

setup: $(VENV)/.installed  ## create .venv and install the pinned requirements

data: setup  ## fetch the data sets of RECIPE (or DATASET, or known WEIGHTS) into data/
	$(BIN)/python code/fetch_data.py --recipe "$$RECIPE" $${DATASET:+--dataset "$$DATASET"} \
	$${WEIGHTS:+--weights "$$WEIGHTS"}

reproduce: setup  ## run what is missing of RECIPE (default: quick) and build its report
	$(SNAKEMAKE)

report: reproduce  ## the same as reproduce: the report is its last step

notebooks: CONFIG = republish=True
notebooks: setup  ## run the notebooks of RECIPE again on its records, then the report
	$(SNAKEMAKE)

poster: reproduce  ## the poster is built with the report

dry-run: setup  ## walk every stage of RECIPE with tiny stand-ins, in a minute or two
	$(BIN)/python code/dry_run.py --recipe "$$RECIPE"

demo: CONFIG = demo=True
demo: setup  ## show teacher and student of RECIPE side by side in the browser
	$(SNAKEMAKE)
	$(BIN)/python code/demo.py --recipe "$$RECIPE" $${PORT:+--port "$$PORT"}

test: setup  ## run the tests
	$(BIN)/python -m pytest -n 2 --dist worksteal code/tests

lint: setup  ## check style and formatting
	$(BIN)/ruff check code && $(BIN)/ruff format --check code

bench: setup  ## run the benchmarks of RECIPE again
	$(BIN)/python code/benchmark.py --recipe "$$RECIPE"

clean:  ## remove caches, checkpoints and all trained weights, also distilled ones; records stay
	rm -rf .snakemake "$${RESULTS_DIR:-results}"/*/{.stamps,models,checkpoints}
	find code -name __pycache__ -type d -prune -exec rm -rf {} +
