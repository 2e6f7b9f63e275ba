# Every target works as the first command after a clone: it makes .venv and installs what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := data,report,dev
STAMP := $(VENV)/.installed
PACKAGES := pipeline workers launch
CODE := $(PACKAGES) tests benchmarks examples

.PHONY: demo test test-all check format install types build clean help

demo: install ## train on the bundled digits, one process for each of four stages
	$(BIN)/stepahead train digits

test: install ## the tests, without the slow ones
	$(BIN)/python -m pytest -m "not slow"

test-all: install ## all tests
	$(BIN)/python -m pytest

check: install types ## lint, format, import layers, types
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

format: install ## rewrite the code in the house format
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

install: $(STAMP) ## a usable .venv

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "stepahead needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
		{ echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@

# mypy and pyright do not follow an editable install: they read the packages through these links.
types:
	@mkdir -p build/types/stepahead
	@for package in $(PACKAGES); do ln -sfn ../../../$$package build/types/stepahead/$$package; done

# sdist and wheel together: the wheel is then built from the sdist, never from a stale build folder.
build: install ## sdist and wheel, in dist/
	rm -rf dist && $(BIN)/python -m build --outdir dist

clean: ## remove everything that make made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12
