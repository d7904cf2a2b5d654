# Everything a newcomer needs: `make run` and `make test`. Nothing but Python 3.11+ and make is asked for.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help env run test check format bench real clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

env: $(VENV)/.compiled  ## create .venv with everything in it; compile the hot modules where there is a C compiler

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Headroom needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 run"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@HEADROOM_COMPILE=no $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

# Beside their sources, which they stand in for; so whatever is newer than they are has them made again.
# HEADROOM_COMPILE=no: run everything interpreted, as to debug or to measure coverage.
$(VENV)/.compiled: $(VENV)/.ready setup.py pyproject.toml $(shell $(PYTHON) -c 'import tomllib; from glob import glob; print(*(f for p in tomllib.load(open("pyproject.toml", "rb"))["tool"]["headroom"]["compiled"] for f in glob(p)))' 2>/dev/null)
ifeq ($(HEADROOM_COMPILE),no)
	@echo "nothing is compiled: HEADROOM_COMPILE=no"
else
	@echo "compiling the hot modules (a minute or two; HEADROOM_COMPILE=no goes without)"
	@$(BIN)/python setup.py --quiet build_ext --inplace >$(VENV)/compile.log 2>&1 || { cat $(VENV)/compile.log; exit 1; }
	@grep -s 'interpreted\|nothing is compiled' $(VENV)/compile.log || true
	@touch $@
endif

run: env  ## the gateway in front of three emulated engines; Ctrl-C ends all of it
	@exec $(BIN)/python -m router demo $(if $(PORT),--port $(PORT))

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
