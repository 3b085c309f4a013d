# Two commands: `make run` executes the notebooks, `make test` checks everything. Both set up .venv if needed.
# GPEN_SLOW_TESTS=1 make test takes some minutes more: clusters, and each command beside the vendor's.
# Variables: PARAMS=params/smoke.yaml  ARGS="-p dtype int8"  PYTHON=/path/to/python3.12  UV_TORCH_BACKEND=cpu

PARAMS ?= params/demo.yaml
ARGS ?=
WORKERS ?= $(shell nproc)
VENV := .venv
PYTHON_VENV := $(VENV)/bin/python
READY := $(VENV)/.ready
# JupyterLab refuses to start as root (in containers) unless told so.
LAB_ARGS ?= $(if $(filter 0,$(shell id -u)),--allow-root)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run test lint format lab clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY) ## create or update .venv with the pinned dependencies

$(READY): pyproject.toml constraints.txt scripts/setup.sh
	bash scripts/setup.sh
	@touch $@

run: $(READY) ## execute notebooks 00 to 07 with PARAMS (default params/demo.yaml)
	$(PYTHON_VENV) -m gpenlib.notebooks --params $(PARAMS) $(ARGS)

test: $(READY) lint ## set up if needed, lint, type-check, run all tests
	OMP_WAIT_POLICY=PASSIVE $(PYTHON_VENV) -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal $(ARGS)

lint: $(READY) ## ruff and mypy
	$(PYTHON_VENV) -m ruff check .
	$(PYTHON_VENV) -m ruff format --check .
	$(PYTHON_VENV) -m mypy

format: $(READY) ## let ruff format code and notebooks; strip notebook outputs
	$(PYTHON_VENV) -m ruff check --fix .
	$(PYTHON_VENV) -m ruff format .
	$(PYTHON_VENV) -m nbstripout notebooks/*.ipynb

lab: $(READY) ## open JupyterLab on the notebooks
	$(PYTHON_VENV) -m jupyterlab --LabApp.default_url=/lab/tree/notebooks $(LAB_ARGS)

clean: ## delete caches (never outputs/ or .venv)
	rm -rf build .mypy_cache .pytest_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -exec rm -rf {} +
