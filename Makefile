# Works with GNU make and Python 3.10 or later; everything else is installed into $(VENV).
PYTHON ?= python3
VENV ?= .venv
# What a development environment contains: all integrations and the tools.
EXTRAS ?= dev
# Passed to pip, for example: PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=
# Passed to pytest, for example: PYTEST_ARGS="-k cache -x"
PYTEST_ARGS ?=
# Processes that run tests side by side, a file of tests in one of them; 0 runs all in this one.
WORKERS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV_PYTHON := $(VENV)/bin/python
DEMO_STAMP := $(VENV)/.stamp-demo
DEV_STAMP := $(VENV)/.stamp-dev
PIP_INSTALL = "$(VENV_PYTHON)" -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' "$(firstword $(MAKEFILE_LIST))" | sort \
		| awk -F ':.*## ' '{ printf "  %-10s %s\n", $$1, $$2 }'
	@printf '\nVariables: PYTHON=%s VENV=%s EXTRAS=%s WORKERS=%s PIP_ARGS= PYTEST_ARGS=\n' '$(PYTHON)' '$(VENV)' '$(EXTRAS)' '$(WORKERS)'

.PHONY: demo
demo: $(DEMO_STAMP) ## Install the package and search a few documents with the default model
	@"$(VENV)/bin/grace" demo

.PHONY: test
test: $(DEV_STAMP) ## Run the tests
	@"$(VENV_PYTHON)" -m pytest --numprocesses $(WORKERS) --dist loadfile -m 'not alone' $(PYTEST_ARGS); code=$$?; \
		[ $$code = 0 ] || [ $$code = 5 ] || exit $$code
	@"$(VENV_PYTHON)" -m pytest -m alone $(PYTEST_ARGS); code=$$?; [ $$code = 0 ] || [ $$code = 5 ] || exit $$code

.PHONY: lint
lint: $(DEV_STAMP) ## Check style and formatting
	@"$(VENV_PYTHON)" -m ruff check
	@"$(VENV_PYTHON)" -m ruff format --check

.PHONY: types
types: $(DEV_STAMP) ## Check types
	@"$(VENV_PYTHON)" -m mypy

.PHONY: check
check: lint types docs test ## Everything that must pass before a change is proposed

.PHONY: tables
tables: $(DEV_STAMP) ## Make the tables of README and docs from benchmarks/results
	@PYTHONPATH=benchmarks "$(VENV_PYTHON)" -m grace_benchmarks.report.tables

.PHONY: docs
docs: $(DEV_STAMP) ## Build the documentation site into build/site
	@"$(VENV_PYTHON)" docs/site/links.py
	@NO_MKDOCS_2_WARNING=1 "$(VENV_PYTHON)" -m mkdocs build --quiet
	@echo 'The site is in build/site; to look at it: "$(VENV_PYTHON)" -m http.server --directory build/site'

.PHONY: format
format: $(DEV_STAMP) ## Rewrite the code in the project's style
	@"$(VENV_PYTHON)" -m ruff check --fix
	@"$(VENV_PYTHON)" -m ruff format

.PHONY: dist
dist: $(DEV_STAMP) ## Build the source distribution and the wheel into dist/
	@rm -rf dist
	@"$(VENV_PYTHON)" -m build

.PHONY: clean
clean: ## Remove the environment, build results and caches
	rm -rf "$(VENV)" dist build .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment is made once, and installed into again when the requirements change.
$(DEMO_STAMP): pyproject.toml constraints.txt
	@$(call make_venv)
	@echo 'Installing the package into $(VENV) (a few minutes the first time) ...'
	@$(PIP_INSTALL) --constraint constraints.txt --editable .
	@touch "$@"

$(DEV_STAMP): pyproject.toml constraints.txt
	@$(call make_venv)
	@echo 'Installing the package with [$(EXTRAS)] into $(VENV) (a few minutes the first time) ...'
	@$(PIP_INSTALL) --constraint constraints.txt --editable ".[$(EXTRAS)]"
	@touch "$(DEMO_STAMP)" "$@"

# Editable installation of a pyproject.toml needs pip 21.3; Python 3.10 brings an older one on some systems.
define make_venv
if ! "$(VENV_PYTHON)" -m pip --version >/dev/null 2>&1; then \
	"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "Python 3.10 or later is needed, and '$(PYTHON)' is $$("$(PYTHON)" --version 2>/dev/null || echo not to be found)." >&2; \
		echo "Name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; \
		exit 1; \
	}; \
	"$(PYTHON)" -m venv "$(VENV)" && "$(VENV_PYTHON)" -m pip install --quiet --disable-pip-version-check 'pip>=23.1'; \
fi
endef
