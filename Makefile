# Everything runs in .venv in this folder; nothing else is needed than Python 3.11 or newer with venv, and make.

PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check format e2e properties audit bench lock clean

help:  ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## fill .venv with the pinned dependencies and this project, and build the native library

NATIVE := collector/otelbill_collector/native
$(STAMP): requirements/dev.txt pyproject.toml hatch_build.py $(wildcard $(NATIVE)/*.c $(NATIVE)/*.h)
	@test -n "$(PYTHON)" || { echo "otelbill needs Python 3.11 or newer with venv; install it or set PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "setting up $(VENV) with $$($(BIN)/python --version); the first time takes a minute"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $(STAMP)

demo: setup  ## a whole billing day on this machine: agents, sidecar, local provider and Stripe
	@$(BIN)/otelbill demo

test: setup  ## all tests but the end-to-end ones
	@$(BIN)/python -m pytest -q -m "not e2e" -n 2

test-all: setup  ## the same, but the slow ones, on every other CPython from 3.11 up on this machine
	@$(BIN)/python -m tests.interpreters

check: setup  ## format, lint, strict types, tidy
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m pytest -q tests/tidy

format: setup  ## rewrite files to the house format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

e2e: setup  ## the real OpenTelemetry Collector, Jaeger, Phoenix, Prometheus and litellm (built or installed when missing)
	@$(BIN)/python -m pytest -q tests/e2e -m e2e

properties: setup  ## every property of amounts with 10,000 examples (hours on two cores; EXAMPLES=1000 for fewer)
	@OTELBILL_EXAMPLES=$${EXAMPLES:-10000} $(BIN)/python -m pytest -q -m money --timeout=0 -n 2

audit: setup  ## the independent auditor over 1,000 random months (MONTHS=200 for fewer)
	@OTELBILL_AUDIT_MONTHS=$${MONTHS:-1000} $(BIN)/python -m pytest -q tests/auditor -n 2

bench: setup  ## measure everything into benchmarks/results.json and docs/benchmarks.md; never fails on a time
	@$(BIN)/python -m benchmarks

lock: setup  ## write the pinned requirement files anew from pyproject.toml
	@$(BIN)/python -m pip install --quiet uv
	@for x in "collector --extra stripe" dev; do $(BIN)/uv pip compile -q pyproject.toml --extra $$x --universal \
		--python-version 3.11 --generate-hashes --no-header -o requirements/$${x%% *}.txt; done

clean:  ## remove what the other targets made
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
