# One command for each thing to do here; `make` alone lists them.

VENV ?= .venv
PYTHON ?=
# Passed on: make test ARGS='tests/train -k resume', make demo ARGS='output=/tmp/demo'.
ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --no-cache-dir

# A name on PATH is no proof: pyenv leaves commands there that fail when they are run.
FIND_PYTHON := for python in $(if $(PYTHON),"$(PYTHON)",python3.11 python3.12 python3 python); do \
	if "$$python" -c 'import ensurepip, venv, sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' \
		>/dev/null 2>&1; then echo "$$python"; break; fi; done

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint format bench
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 16
	@echo "Variables: VENV=$(VENV), PYTHON (an interpreter 3.11 or 3.12), ARGS (passed on)"

setup: $(BIN)/.requirements ## create .venv and install requirements.txt into it

demo: $(BIN)/.requirements ## corpus, vocabulary, pre-training, fine-tuning, predictions: 8 minutes
	$(BIN)/python scripts/demo.py overwrite=true $(ARGS)

test: $(BIN)/.requirements-dev ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(BIN)/.requirements-dev ## ruff, its formatter, and mypy in strict mode
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(BIN)/.requirements-dev ## let ruff correct what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BIN)/.requirements-dev ## measure speeds, print ratios, write benchmarks/results
	$(BIN)/python -m benchmarks $(ARGS)

# The stamps say which versions lie in the environment; a changed list installs again.
$(BIN)/.requirements: requirements.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python=$$($(FIND_PYTHON)); \
		if [ -z "$$python" ]; then \
			echo "make: no usable Python: needed is 3.11 or 3.12 with the modules venv and ensurepip"; \
			echo "make: install one, or name it: make setup PYTHON=/path/to/python3.12"; \
			exit 1; \
		fi; \
		echo "Creating $(VENV) with $$("$$python" --version)"; \
		"$$python" -m venv "$(VENV)" || exit 1; \
	fi
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' || { \
		echo "make: $(VENV) has $$($(BIN)/python --version), but 3.11 or 3.12 is needed; remove it"; exit 1; }
	$(PIP) -r requirements.txt
	@touch $@

$(BIN)/.requirements-dev: requirements-dev.txt $(BIN)/.requirements
	$(PIP) -r requirements-dev.txt
	@touch $@
