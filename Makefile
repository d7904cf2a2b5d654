# Everything a newcomer needs: `make run` and `make test`. Nothing but Python 3.11+ and make is asked for.
# uv installs where it is, or where pip can have it; pip does where not. A C compiler makes it faster, no more.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(VENV)/uv/bin/uv
TEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal
LOOPS := $(addprefix router/core/,columns.py kernels.py estimators.py hashing.py) policies/routing/_headroom.py
unexport PYTHONDONTWRITEBYTECODE  # each process that a test starts would compile every module once more
.DEFAULT_GOAL := help
.PHONY: help env run fast test check format bench real chart docs wheel clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

env: $(VENV)/.dev $(VENV)/.loops  ## create .venv with everything that development needs

run: $(VENV)/.run $(VENV)/.loops  ## the gateway in front of three emulated engines; Ctrl-C ends all of it (PORT=9000)
	@exec $(BIN)/python -m router demo $(if $(PORT),--port $(PORT))

fast: env  ## compile the hot modules: a minute or two at first, seconds after an edit inside a function
	@echo "compiling the hot modules"
	@HEADROOM_COMPILE=all $(BIN)/python setup.py --quiet build_ext --inplace >$(VENV)/compile.log 2>&1 || { cat $(VENV)/compile.log; exit 1; }

test: env  ## the tests, of what runs here: compiled modules after `make fast`, else the sources
	@$(TEST)

check: env  ## format, lint, types, import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

format: env  ## format the code and mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: fast  ## print the figures (CPU time; see tests/bench)
	@$(BIN)/python -m pytest -q -s -m benchmark tests/bench

real: env  ## against real engines, skipping with a reason what is not installed
	@$(BIN)/python -m pytest -q -rs -m real tests/real

chart: $(VENV)/.chart  ## the tests of the Helm chart, which need Helm's own library and Kubernetes' schemas
	@$(BIN)/python -m pytest -q -rs tests/deploy/test_chart.py tests/targets/test_kubernetes.py

docs: $(VENV)/.docs  ## the documentation site in build/docs; a dead link fails it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict -f deploy/docs/mkdocs.yml

wheel: $(VENV)/.wheel  ## dist/*.whl: compiled, for any Linux of this processor as new as this one
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist/built
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --wheel-dir dist dist/built/*.whl

clean:  ## forget the environment, what was compiled and every cache
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage *.egg-info build dist
	rm -rf router/_native router/compiled.*.json
	find router policies simulator -name '*.so' -delete

# --- the environment, in steps: what `make run` needs, what development needs, what `make wheel` needs

# Three ways, in the order of speed: uv from PATH; uv from the pip of $(PYTHON), into a folder of its own; pip.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Headroom needs Python 3.11 or later; $(PYTHON) is $$($(PYTHON) --version). Try: make PYTHON=python3.12 run"; exit 1; }
	@if uv --version >/dev/null 2>&1; then mkdir -p $(dir $(UV)); ln -sf "$$(command -v uv)" $(UV); \
	 else $(PYTHON) -m pip install --quiet --disable-pip-version-check --no-compile --target $(VENV)/uv uv >/dev/null 2>&1; fi; \
	 $(PYTHON) -m venv --without-pip $(VENV)

# $(call install,WHAT): a failure of uv, which reads no pip.conf, leaves it to pip.
install = { test -x $(UV) && $(UV) pip install --quiet --python $(BIN)/python $(1) 2>$(VENV)/uv.log; } || \
	{ $(BIN)/python -m ensurepip >/dev/null && $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile $(1); }

$(VENV)/.run: pyproject.toml | $(BIN)/python
	@echo "installing what the router needs"
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"], sep="\n")' >$(VENV)/run.txt
	@$(call install,'setuptools>=77' -r $(VENV)/run.txt)
	@touch $@

# At once, and no loss but of speed where they cannot be built.
$(VENV)/.loops: setup.py $(wildcard router/core/*.[ch] router/gateway/traffic/*.c policies/routing/*.[ch]) $(LOOPS) | $(VENV)/.run
ifneq ($(HEADROOM_COMPILE),no)
	@HEADROOM_COMPILE=loops $(BIN)/python setup.py --quiet build_ext --inplace >$(VENV)/loops.log 2>&1 || echo "no loops in C ($(VENV)/loops.log says why): they run in Python"
	@touch $@
endif

$(VENV)/.dev: $(VENV)/.run
	@echo "installing what development needs"
	@HEADROOM_COMPILE=no; export HEADROOM_COMPILE; $(call install,--no-build-isolation -e '.[dev]')
	@touch $@

$(VENV)/.wheel $(VENV)/.chart $(VENV)/.docs: $(VENV)/.%: $(VENV)/.dev
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$*"], sep="\n")' >$(VENV)/$*.txt
	@$(call install,-r $(VENV)/$*.txt)
	@touch $@
