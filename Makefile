# make demo   - the whole system on this machine: no root, no Docker, no server
# make test   - everything, against real mosquitto and redis-server
# make check  - format, lint, types, import contracts, and whether the contract is what the types say
# make platforms - whether wheels exist wherever docs/platforms.md says that fedmq runs
# make peers  - torch and an old onnxruntime, which some tests compare with and skip without
# make contract - draw schemas/asyncapi.yaml and docs/reference/task.md anew from the types

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: demo test test-rest test-soaks check format lint types contract contracts platforms peers bench servers clean

demo: $(VENV)/.demo
	@$(BIN)/fedmq demo $(ARGS)

# Soaks stand in line, each taking what there is: they run beside the others, not between them.
SOAKS := tests/integration/test_soak.py

test: $(VENV)/.dev servers
ifdef ARGS
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(ARGS)
else
	@$(MAKE) --no-print-directory -j 2 test-soaks test-rest
endif

test-rest:
	$(BIN)/python -m pytest -n 3 --ignore $(SOAKS)

test-soaks:
	$(BIN)/python -m pytest -q --no-header $(SOAKS)

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy --platform darwin
	$(BIN)/mypy --platform win32 schemas lifetimes mqtt_session edge_agent
	$(BIN)/lint-imports
	$(BIN)/python -m scripts.contract --check

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

contract: $(VENV)/.dev
	$(BIN)/python -m scripts.contract

peers: $(VENV)/.dev
	$(BIN)/python -m scripts.peers

platforms: $(VENV)/.dev
	$(BIN)/python -m scripts.platforms $(ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .

types: $(VENV)/.dev
	$(BIN)/mypy

contracts: $(VENV)/.dev
	$(BIN)/lint-imports

bench: $(VENV)/.dev servers
	$(BIN)/python -m benchmarks $(ARGS)

servers:
	@sh scripts/install_test_servers.sh

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fedmq needs Python 3.11 or newer: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.demo

clean:
	rm -rf $(VENV) .cache runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
