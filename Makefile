# `make demo` and `make test` do all the set-up on a fresh machine with Python >= 3.11 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
FAST := not slow and not ddp and not gpu and not browser and not server
# Tensors of the fast tests are tiny: a second thread costs more than it brings.
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: install demo test slow fuzz browser server docs check format clean help

help:  ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

install: $(VENV)/.installed  ## make .venv with all that the commands need but export (extras onnx and openvino)

demo: $(VENV)/.installed  ## synthetic data, training, evaluation and a report on the CPU, in under four minutes
	$(BIN)/trireid demo

test: $(VENV)/.tested  ## the fast tier of the tests
	$(ONE_THREAD) $(BIN)/python -m pytest -m "$(FAST)"

slow: $(VENV)/.tested  ## the slow tier: training runs that must beat stated floors
	$(BIN)/python -m pytest -m "(slow or ddp or gpu) and not server and not browser"

fuzz: $(VENV)/.tested  ## ten thousand broken inputs, each must work or be refused in one line; e.g. make fuzz FUZZ="--seed 2"
	PYTHONPATH=$(CURDIR)/tests $(ONE_THREAD) $(BIN)/python -m fuzz $(FUZZ)

browser: $(VENV)/.browsed  ## pages in a real browser: needs Debian's chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m browser

server: $(VENV)/.tested  ## the gallery on a real Milvus server, which it installs and starts itself (Linux on x86-64)
	$(ONE_THREAD) $(BIN)/python -m pytest -rs -m server

docs: $(VENV)/.documented  ## the documentation site, strictly: build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "The site is in build/site/index.html"

check: $(VENV)/.tested  ## ruff, mypy strict and the fast tier
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) test

format: $(VENV)/.tested  ## let ruff format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove the environment and caches (run folders stay)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache build *.egg-info src/*.egg-info

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "trireid needs Python >= 3.11; $$($(PYTHON) --version) found. Run: make PYTHON=python3.12 install"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing pinned packages into $(VENV) (torch is large; this takes a minute or more) ..."
	$(PIP_INSTALL) --editable '.[gallery,serve]'
	@touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[test]'
	@touch $@

$(VENV)/.documented: $(VENV)/.installed
	$(PIP_INSTALL) --editable '.[docs]'
	@touch $@

$(VENV)/.browsed: $(VENV)/.tested
	$(PIP_INSTALL) --editable '.[browser]'
	@touch $@
