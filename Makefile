# Everything a newcomer needs: `make run` and `make test`. Nothing but Python 3.11+ and make is asked for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help env run test check format bench real clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

env: $(VENV)/.ready  ## create .venv with everything in it

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Headroom needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 run"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

run: env  ## the gateway in front of three emulated engines; Ctrl-C ends all of it
	@exec $(BIN)/python -m router demo

test: env  ## the tests
	@$(BIN)/python -m pytest -q

check: env  ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: env  ## format the code and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: env  ## print the figures (CPU time; see tests/bench)
	@$(BIN)/python -m pytest -q -s -m benchmark tests/bench

real: env  ## against real engines, skipping with a reason what is not installed
	@$(BIN)/python -m pytest -q -rs -m real tests/real

clean:  ## forget the environment and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage *.egg-info build dist
