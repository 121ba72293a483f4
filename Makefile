PYTHON ?= python3
TARGET ?= ampere
STACK ?= trtrtx1.7-cuda13
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin

# where unit tests put their files: a third of their time goes into the disk elsewhere
MEMORY := $(shell [ "$$(df -m --output=avail /dev/shm 2>/dev/null | tail -n 1)" -gt 1000 ] 2>/dev/null && echo /dev/shm)

.DEFAULT_GOAL := help
.PHONY: help setup build-engines image plan test test-integration lint format locks bench schema clean

help:  ## print this list
	@awk -F ':.*## +' '/^[a-z-]+:.*## / { printf "  make %-18s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build-engines: $(VENV)/.ready  ## set up and build the engines of TARGET (ampere); more options in ARGS
	@$(BIN)/enginefarm build --target $(TARGET) $(ARGS)

image: $(VENV)/.ready  ## set up and build the image of STACK (trtrtx1.7-cuda13)
	@$(BIN)/enginefarm images build $(STACK) $(ARGS)

plan: $(VENV)/.ready  ## set up and print the jobs of TARGET
	@$(BIN)/enginefarm plan --target $(TARGET) $(ARGS)

setup: $(VENV)/.ready  ## make .venv with the command enginefarm

test: $(VENV)/.ready-dev  ## set up and run the unit tests
	@env -u PYTHONDONTWRITEBYTECODE $(if $(MEMORY),TMPDIR=$(MEMORY)) $(BIN)/python -m pytest tests/unit -n $$(($$(nproc) + 1)) --dist worksteal --timeout 20 $(ARGS)

test-integration: $(VENV)/.ready-dev  ## run the tests that need real programs, TensorRT-RTX and PyTorch
	@$(BIN)/python -m pytest tests/integration --run-integration $(ARGS)

lint: $(VENV)/.ready-dev  ## style, types, import rules, shell, generated files
	@PATH="$(CURDIR)/$(BIN):$$PATH" scripts/lint

format: $(VENV)/.ready-dev  ## format the Python files
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

locks: $(VENV)/.ready  ## write the lock files again; ARGS=--upgrade takes the newest versions
	@$(BIN)/python scripts/update-locks.py $(ARGS)

bench: $(VENV)/.ready-dev  ## measure and write a Markdown table to benchmarks/results
	@$(BIN)/python benchmarks/spine.py $(ARGS)

schema: $(VENV)/.ready  ## write the generated schemas and reference pages
	@$(BIN)/enginefarm schema

clean:  ## remove what make and the tools made here; the store stays
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache && find . -name __pycache__ -prune -exec rm -rf {} +

$(VENV)/.ready: requirements.lock pyproject.toml
	@scripts/make-venv $(PYTHON) $(VENV) requirements.lock && touch $@

$(VENV)/.ready-dev: requirements-dev.lock pyproject.toml | $(VENV)/.ready
	@scripts/make-venv $(PYTHON) $(VENV) requirements-dev.lock && touch $@
