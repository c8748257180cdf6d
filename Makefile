# `make demo` and `make test` set themselves up; nothing but Python 3.11 or newer, git and make is needed.
# With another Python: `make test PYTHON=python3.13`; the virtual environment is rebuilt if it is of another one.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
INSTALLED := $(VENV)/.installed-$(VERSION)
# What setup.cfg names as extras: dev is all that any part of the work needs, test what most tests do.
EXTRAS ?= dev
# Versions for pip to keep to: a file, as `python .ci/lowest.py` prints it.
CONSTRAINTS ?=
# Test processes: tests also wait for processes of their own, so one more than there are cores.
WORKERS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count() + 1)' 2>/dev/null)
TESTS ?=

.PHONY: install demo test lint docs clean
.DEFAULT_GOAL := help

help:
	@echo "make demo   a small data set made here, through the whole chain, to a table of results (in demo/)"
	@echo "make test   the tests (TESTS=tests/store for some of them)"
	@echo "make lint   ruff and mypy"
	@echo "make docs   the documentation as web pages, in build/docs"
	@echo "make install  the virtual environment in .venv, which all of these make if it is missing"
	@echo "make clean  remove the virtual environment, the demo and caches"
	@echo "PYTHON=python3.13 chooses another Python than python3"

$(INSTALLED): setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "excl needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit("%d.%d" % sys.version_info[:2] != "$(VERSION)")' 2>/dev/null || \
	  $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "installing excl and what it needs into $(VENV) (PyTorch is large: this takes some minutes)"
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[$(EXTRAS)]'
	@touch $@

install: $(INSTALLED)

demo: $(INSTALLED)
	$(BIN)/excl run demo --root demo

test: $(INSTALLED)  # whose modules are compiled once, and not in each of hundreds of processes
	PYTHONDONTWRITEBYTECODE= $(BIN)/pytest --numprocesses $(WORKERS) --dist worksteal $(TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED)  # strictly: a broken link or reference fails
	$(BIN)/python -m sphinx -W --keep-going --quiet -b html docs build/docs
	@echo "open build/docs/index.html"

clean:
	rm -rf $(VENV) demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
