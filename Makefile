# Sets up and runs dmt_ds on a machine that has Python 3.10 or later. `make help` lists what there is.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
BENCH ?= loss step trainer
# Tests at a time, one more than the cores that they were written for: many wait for clocks, stores and a cluster.
JOBS ?= 3

# DeepSpeed's own kernels are not used: nothing is compiled, neither now nor at run time.
export DS_BUILD_OPS := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.DEFAULT_GOAL := help
.PHONY: help setup quickstart test oldest bench lint format lock audit clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## install dmt_ds and the versions of requirements.lock into .venv

quickstart: $(VENV)/.installed ## set up, then make three teachers on digits and distil them (5 minutes, no GPU)
	$(VENV)/bin/dmt-ds quickstart $(ARGS)

test: $(VENV)/.installed-dev ## set up, then run the tests (ARGS="-k losses" chooses)
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

oldest: $(VENV)-oldest/.installed ## run the tests with the oldest versions that pyproject.toml allows, in .venv-oldest
	$(VENV)-oldest/bin/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

bench: $(VENV)/.installed ## measure beside named peers (BENCH="loss step trainer" chooses); figures in benchmarks/results
	set -e; for name in $(BENCH); do $(VENV)/bin/python benchmarks/bench_$$name.py $(ARGS); done

lint: $(VENV)/.installed-dev ## formatting, lint, types, shell scripts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/shellcheck --external-sources .ci/run $(wildcard slurm/*.sh tests/slurm/cluster/*.sh benchmarks/*.sh)

format: $(VENV)/.installed-dev ## rewrite the code as `make lint` wants it
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lock: $(VENV)/.installed-dev ## renew requirements.lock from pyproject.toml
	$(VENV)/bin/python -m pip install --quiet uv
	printf '%s\n' '# Tested versions of all that pyproject.toml asks for, on Python 3.10 and later; made by `make lock`.' > $(VENV)/lock
	$(VENV)/bin/uv pip compile pyproject.toml --universal --python-version 3.10 --all-extras --upgrade \
		--no-header --no-annotate --no-emit-index-url --quiet >> $(VENV)/lock
	mv $(VENV)/lock requirements.lock

audit: $(VENV)/.installed-dev ## known vulnerabilities of the locked versions, as PyPI knows them (needs a network)
	$(VENV)/bin/python -m pip install --quiet pip-audit
	$(VENV)/bin/python -m pip_audit --strict --no-deps --disable-pip --requirement requirements.lock

clean: ## remove .venv, .venv-oldest and all caches
	rm -rf $(VENV) $(VENV)-oldest .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "$(PYTHON) is older than Python 3.10: make PYTHON=/path/to/python3.12 ..."; exit 2; }
	@echo "Making $(VENV) with $$($(PYTHON) --version)."
	@$(PYTHON) -m venv $(VENV) \
		|| { rm -rf $(VENV); echo "$(PYTHON) can't make environments; on Debian: apt-get install python3-venv"; exit 2; }

$(VENV)/.installed: pyproject.toml requirements.lock | $(VENV)/bin/python
	@echo "Installing dmt_ds and what it needs into $(VENV): several GB with PyTorch, some minutes, only once."
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the tools for tests and lint."
	$(VENV)/bin/python -m pip install --quiet --constraint requirements.lock --editable '.[dev]'
	@touch $@

$(VENV)-oldest/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing the oldest versions that pyproject.toml allows into $(VENV)-oldest: several GB, some minutes."
	$(VENV)/bin/python -m pip install --quiet uv
	$(VENV)/bin/uv venv --quiet --clear --python $(VENV)/bin/python $(VENV)-oldest
	$(VENV)/bin/uv pip install --quiet --python $(VENV)-oldest --resolution lowest-direct --editable '.[dev]'
	@touch $@
