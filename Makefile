# make quickstart   install, train the embedded model for a few minutes, write a report
# make test         unit tests, then the rest
# make check        lint, format, types, direction of imports, links in the documents
# make clean        remove the environment and the caches; runs/ stays
#
# PYTHON=python3.12 picks another interpreter for the environment. pip's own settings (PIP_INDEX_URL, ...) are respected.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
CORE := .venv/installed
DEV := .venv/installed-dev
CONFIG := configs/quickstart.toml

.PHONY: help quickstart test check clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

quickstart: $(CORE)
	@$(BIN)/paragator train $(CONFIG) --overwrite
	@echo "report: $(CURDIR)/runs/quickstart/report.html"

test: $(DEV)
	@echo "unit tests"
	@$(BIN)/python -m pytest tests/unit
	@echo "contract, golden and end-to-end tests"
	@$(BIN)/python -m pytest tests --ignore=tests/unit

check: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q tests/unit/test_docs.py

clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo "error: paragator needs Python 3.11 or newer, and '$(PYTHON)' is not; name another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv .venv

# A stamp stands for a finished installation, so that a second call installs nothing.
$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing paragator into .venv (about 2 minutes)"
	@$(PIP) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing paragator and its development tools into .venv (about 2 minutes)"
	@$(PIP) -e '.[dev]'
	@touch $@ $(CORE)
