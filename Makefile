# Commands for people. Everything lands in .venv (and .venvs, .airflow) inside the checkout; `make clean` removes it.

PYTHON ?= python3
# s3 or sftp: how the sandbox delivers to `make demo` and `make airflow`.
DELIVERY ?= s3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_CRASH := $(VENV)/.installed-crash
INSTALLED_DOCS := $(VENV)/.installed-docs
# Of `make crash`: `--short`, or names of scenarios; see `python -m tests.crash --help`.
CRASH ?= --write
# Of `make bench`: names of benchmarks, and `--write`; see `python -m benchmarks --help`.
BENCH ?=
# Files in parallel: most of a test's time goes into waiting.
PARALLEL := -n 5 --no-loadscope-reorder
# uv from the PATH, or from the package index into the environment itself.
UV := $(or $(shell command -v uv 2>/dev/null),$(BIN)/uv)
# Compiled once: where Python may write no byte code, each of Airflow's many processes would take seconds for it.
INSTALL := $(UV) pip install --quiet --compile-bytecode

.PHONY: demo airflow test lint docs docs-serve screenshots build matrix bench crash clean help

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 14

$(INSTALLED): pyproject.toml constraints.txt hatch_build.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x "$(UV)" || $(BIN)/python -m pip install --quiet uv
	$(INSTALL) --python $(BIN)/python --constraint constraints.txt --editable '.[sandbox,sftp]' --group dev
	touch $@

$(INSTALLED_CRASH): $(INSTALLED)
	$(INSTALL) --python $(BIN)/python --constraint constraints.txt --group crash
	touch $@

$(INSTALLED_DOCS): $(INSTALLED)
	$(INSTALL) --python $(BIN)/python --constraint constraints.txt --group docs --group screenshots
	touch $@

demo: $(INSTALLED)  ## Refresh a patient from end to end, on Airflow and the sandbox
	$(BIN)/healthex-sandbox demo --delivery $(DELIVERY)

airflow: $(INSTALLED)  ## Airflow's UI with the sandbox behind it, until Ctrl-C
	$(BIN)/healthex-sandbox airflow --delivery $(DELIVERY)

test: $(INSTALLED)  ## The whole suite
	$(BIN)/python -m pytest $(PARALLEL)

lint: $(INSTALLED)  ## Style, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy

docs: $(INSTALLED_DOCS)  ## The documentation, into site; strict
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(INSTALLED_DOCS)  ## The documentation on 127.0.0.1:8000, rebuilt on each change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

screenshots: $(INSTALLED_DOCS)  ## Take the pictures of Airflow's UI in docs/images afresh (needs Chromium)
	$(BIN)/python docs/screenshots.py

matrix: $(INSTALLED)  ## The suite on each Airflow and Python that is supported (an hour or more)
	UV="$(UV)" PYTHON="$(BIN)/python" PARALLEL="$(PARALLEL)" .ci/matrix

bench: $(INSTALLED)  ## Benchmarks, against what one would write otherwise
	$(BIN)/python -m benchmarks $(BENCH)

crash: $(INSTALLED_CRASH)  ## Kill and starve a whole Airflow, and write docs/crashes.md (15 min; CRASH=--short: 4 min)
	$(BIN)/python -m tests.crash $(CRASH)

build: $(INSTALLED)  ## Wheel and sdist, and their import in a clean environment
	UV="$(UV)" PYTHON="$(BIN)/python" .ci/build

clean:  ## Remove all that was made here
	rm -rf .venv .venvs .airflow .bench dist site .pytest_cache .mypy_cache .ruff_cache
