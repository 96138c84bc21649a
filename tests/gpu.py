"""What tests on a GPU share: `pytest -m gpu` runs them, elsewhere they are skipped."""

import jax
import jax.numpy as jnp
import pytest


def on_gpu(test):
    """Marks a test or a class as one that needs a CUDA GPU."""
    test = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no CUDA GPU")(test)
    return pytest.mark.gpu(test)


def poison():
    """Fills freed memory with NaN bytes, so that an element that nobody writes shows."""
    if jax.default_backend() == "gpu":
        jax.block_until_ready([jnp.full(1 << 24, 0xFF, jnp.uint8) for _ in range(4)])
