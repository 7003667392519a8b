# `make demo` and `make test` set up everything they need; `make check` is all there is to run before a commit.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A build of torch without CUDA. On a machine with an NVIDIA GPU: `make demo TORCH=torch==2.13.0`.
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check
# timm and open_clip for the tests of their encoders, apart: with their torchvision in $(VENV), transformers would use it,
# and PyPI's does not fit a torch without CUDA (tests/library_imports.py).
LIBRARIES := $(VENV)/libraries
LIBRARY_TESTS = CLIPFAKE_TEST_LIBRARIES=1 PYTHONPATH=$(LIBRARIES) $(BIN)/python -m pytest \
	tests/indexer/encoders/test_libraries.py tests/indexer/encoders/test_reference_models.py

.PHONY: demo test test-all check fix bench peers clean help
.DEFAULT_GOAL := check

# torch first and by its pinned name, so that no other package pulls in a build of its own choosing.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt "$(TORCH)" 2>/dev/null || \
	$(PIP) install --quiet --constraint constraints.txt --index-url $(TORCH_INDEX) "$(TORCH)"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --constraint constraints.txt --no-deps --upgrade --target $(LIBRARIES) \
		timm open_clip_torch torchvision ftfy wcwidth
	mkdir -p $(VENV)/src && ln -sfn ../.. $(VENV)/src/clipfake  # so that mypy finds the package by its name
	touch $@

demo: $(VENV)/.ready  ## index, train and query a small simulated data set
	$(BIN)/clipfake demo demo

test: $(VENV)/.ready  ## the tests
	$(BIN)/python -m pytest -m "not slow" -n 2
	$(LIBRARY_TESTS)

test-all: $(VENV)/.ready  ## the tests and the slow ones
	$(BIN)/python -m pytest -n 2
	$(LIBRARY_TESTS)

check: $(VENV)/.ready  ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/mypy tests

fix: $(VENV)/.ready  ## format, and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.ready  ## measure this machine with the demo's stand-in encoder and simulated images
	test -d demo/clipfake-standin-clip || $(BIN)/clipfake demo demo
	$(BIN)/clipfake bench --encoder demo/clipfake-standin-clip

PEERS_PIP := .peers/bin/python -m pip --disable-pip-version-check

peers: $(VENV)/.ready  ## autofaiss, embedding-reader and clip-retrieval, for test-all and benchmarks.clip_retrieval
	$(PYTHON) -m venv .peers
	$(PEERS_PIP) install --quiet "$(TORCH)" torchvision 2>/dev/null || \
	$(PEERS_PIP) install --quiet --index-url $(TORCH_INDEX) "$(TORCH)" torchvision
	$(PEERS_PIP) install --quiet --requirement tests/peers.txt
	$(PEERS_PIP) install --quiet --no-deps clip-retrieval==2.45.0

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/'

clean:  ## remove what `make` made
	rm -rf $(VENV) .peers build *.egg-info demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
