# The one door. Each target sets up what it needs in a virtual environment of this checkout, .venv, by itself.
# Needed beforehand: Python 3.11 or later with pip and venv, git and make. Used if it is there: uv.
#
#   make test PYTHON=python3.13 VENV=.venv-3.13     another interpreter, in an environment beside the first
#   make test PYTEST_ARGS="-n 0 -k urls"            part of the tests

VENV ?= .venv
BIN := $(VENV)/bin
DISTRIBUTIONS := $(patsubst %/pyproject.toml,%,$(wildcard omniq-*/pyproject.toml))
# Three times as many processes as CI has cores: much of what tests do is to wait, and with four a quarter of the cores' time
# was left.
PYTEST_ARGS ?= -n 6 --dist loadgroup
# Tests start hundreds of interpreters: each would compile anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

# Version managers put commands on the path that may fail when run, so the first that really runs is taken.
CANDIDATES := python3.13 python3.12 python3.11 python3
IS_USABLE := import sys, venv, ensurepip; sys.version_info >= (3, 11) or sys.exit(1)
PYTHONS := 3.11 3.12 3.13
VERSION_OF := import sys; print("%d.%d" % sys.version_info[:2])
PYTHON ?= $(shell for python in $(CANDIDATES); do \
	if "$$python" -c '$(IS_USABLE)' >/dev/null 2>&1; then echo "$$python"; break; fi; done)

# An environment keeps the interpreter that it was made with: to ask for another one in vain is an error.
ifneq ($(origin PYTHON),file)
ifneq ($(and $(wildcard $(BIN)/python),$(filter-out help clean,$(MAKECMDGOALS))),)
ifneq ($(shell $(PYTHON) -c '$(VERSION_OF)'),$(shell $(BIN)/python -c '$(VERSION_OF)'))
$(error $(VENV) was made with another Python than $(PYTHON): say `make clean` first, or choose another folder with VENV=.venv-NAME)
endif
endif
endif

.PHONY: help demo test test-long test-all pythons test-all-pythons lint types docs site bench map size screenshots \
	wheels release-check coverage format clean
.DEFAULT_GOAL := help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The servers themselves come with what the tests need, where the machine has none.
demo: $(VENV)/$(if $(BACKEND),.dev,.runtime) ## what OmniQ does, in a temporary folder or with BACKEND=redis|postgres|nats
	$(if $(BACKEND),$(BIN)/python -m tests.servers $(BACKEND) -- \
		sh -c '$(BIN)/omniq demo --url "$$OMNIQ_URL" "$$@"' demo $(DEMO_ARGS),$(BIN)/omniq demo $(DEMO_ARGS))

test: $(VENV)/.tests ## all tests but the long ones
	$(BIN)/python -m pytest -m "not long" $(PYTEST_ARGS)

test-long: $(VENV)/.dev ## the tests marked long: the costliest repetitions, and more examples where they are made up
	$(BIN)/python -m pytest -m "(long or hypothesis) and not short" --hypothesis-profile long $(PYTEST_ARGS)

test-all: $(VENV)/.dev ## both in one run, which starts and collects once what both need
	$(BIN)/python -m pytest -m "not short" --hypothesis-profile long $(PYTEST_ARGS)

# An environment of its own for each other supported Python that is on the machine.
pythons: $(BIN)/python
	@own=$$($(BIN)/python -c '$(VERSION_OF)'); made=; for version in $(PYTHONS); do \
		found=; for python in python$$version "$$HOME"/.pyenv/versions/$$version.*/bin/python; do \
			if [ -z "$$found" ] && [ "$$("$$python" -c '$(IS_USABLE); $(VERSION_OF)' 2>/dev/null)" = $$version ]; \
			then found=$$python; fi; done; \
		if [ $$version = "$$own" ]; then continue; fi; \
		if [ -z "$$found" ]; then echo "there is no Python $$version here"; continue; fi; \
		$(MAKE) --no-print-directory .venv-$$version/.tests VENV=.venv-$$version PYTHON="$$found" & \
		made="$$made $$!"; done; status=0; for one in $$made; do wait $$one || status=1; done; exit $$status

# On the Python of $(VENV) they run with all others. One that gets no environment keeps them off no other.
# A variable, as make --dry-run would run a recipe that names $(MAKE).
MAKE_PYTHONS = $(MAKE) --no-print-directory pythons
test-all-pythons: $(BIN)/python ## the core's tests on each other supported Python that is on the machine
	@own=$$($(BIN)/python -c '$(VERSION_OF)'); status=0; $(MAKE_PYTHONS) || status=1; for version in $(PYTHONS); do \
		if [ $$version = "$$own" ] || [ ! -e .venv-$$version/.tests ]; then continue; fi; echo "Python $$version"; \
		.venv-$$version/bin/python -W error -m pytest -m "not long" $(PYTEST_ARGS) tests/core \
			tests/contrib/test_django.py tests/packaging/test_elsewhere.py tests/packaging/test_warnings.py \
			$$([ $$version != $(lastword $(PYTHONS)) ] || echo tests/docs/test_django_shop.py) || status=1; done; exit $$status

lint: $(VENV)/.dev ## style, format, and the borders between the rooms
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports --no-cache --no-logo

types: $(VENV)/.dev ## mypy, strict: each distribution alone, then all of it with the tests
	@set -e; for distribution in $(DISTRIBUTIONS); do \
		echo "mypy $$distribution"; $(BIN)/mypy "$$distribution/src"; done
	$(BIN)/mypy $(addsuffix /src,$(DISTRIBUTIONS)) tests

docs: $(VENV)/.dev ## run every code block of the documentation
	$(BIN)/python -m pytest tests/docs

site: $(VENV)/.dev ## make a site of the documentation, in site/
	$(BIN)/python -m sphinx --fail-on-warning --quiet --doctree-dir site/.doctrees docs site

bench: $(VENV)/.dev ## measure speed (BENCH_ARGS="--help" lists what)
	$(BIN)/python tests/bench/run.py $(BENCH_ARGS)

map: $(VENV)/.dev ## draw which room of each package knows which
	$(BIN)/python tests/map.py

size: $(BIN)/python ## count the lines of product code, by distribution and language
	$(BIN)/python tests/size.py

screenshots: $(VENV)/.dev ## pictures of every page of the dashboard, in screenshots/; needs chromium
	$(BIN)/python -m tests.dashboard.screenshots screenshots

wheels: $(VENV)/.dev ## build wheel and sdist of each distribution into dist/
	@set -e; for distribution in $(DISTRIBUTIONS); do \
		$(BIN)/python -m build --no-isolation --outdir dist "$$distribution"; done

release-check: $(VENV)/.dev ## all of a release but the upload (VERSION=0.1.0 is what was tagged)
	$(BIN)/python -m tests.release $(VERSION)
	rm -rf dist
	$(MAKE) --no-print-directory wheels
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest -n 2 tests/packaging

coverage: $(VENV)/.dev ## all tests, and the lines that none of them reaches
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

format: $(VENV)/.dev ## put the code into its form
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

clean: ## remove the environment and all that was built
	rm -rf "$(VENV)" dist site screenshots bench-results htmlcov .coverage .coverage.* \
		.hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# With uv on the path the same packages come faster. Neither compiles what may never be imported.
UV := $(shell command -v uv 2>/dev/null)
INSTALL := $(if $(UV),uv pip install --quiet --python $(BIN)/python,$(BIN)/python -m pip install --quiet --no-compile)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "OmniQ needs Python 3.11 or later with pip and venv; none of these is: $(CANDIDATES)." \
		"Name one: make PYTHON=/path/to/python" >&2; exit 1; }
	@"$(PYTHON)" -c '$(IS_USABLE)' || { echo "$(PYTHON) is not Python 3.11 or later with pip and venv." >&2; exit 1; }
	$(if $(UV),uv venv --quiet --python "$(PYTHON)" "$(VENV)","$(PYTHON)" -m venv "$(VENV)")

# In isolation pip would install the build backend anew for each distribution.
$(VENV)/.runtime: $(BIN)/python $(addsuffix /pyproject.toml,$(DISTRIBUTIONS))
	$(if $(UV),,$(INSTALL) 'pip>=25.1' hatchling editables)
	$(INSTALL) $(if $(UV),,--no-build-isolation) $(foreach distribution,$(DISTRIBUTIONS),--editable ./$(distribution))
	@touch $@

# Without linters, of which one brings Node.
$(VENV)/.tests: $(VENV)/.runtime pyproject.toml
	$(INSTALL) --group test --group build --group site
	@touch $@

$(VENV)/.dev: $(VENV)/.tests
	$(INSTALL) --group dev
	@touch $@
