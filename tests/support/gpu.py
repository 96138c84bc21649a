"""What tests of GPU code share. `pytest -m gpu` runs those on a GPU; elsewhere they are skipped."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

from wush_jax.ops import device as devices
from wush_jax.ops.device import Device
from wush_jax.ops.implementations import gpu as implementation

HOPPER, BLACKWELL, AMPERE = (Device("gpu", c) for c in ((9, 0), (10, 0), (8, 0)))


def on_gpu(test):
    """Marks a test or a class as one that needs a CUDA GPU."""
    test = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no CUDA GPU")(test)
    return pytest.mark.gpu(test)


@contextlib.contextmanager
def on(device: Device) -> Iterator[None]:
    """As if programs were compiled for ``device``; Triton counts as installed.

    Off that device the fast implementations then run their XLA references.
    """
    with (
        mock.patch.object(devices, "default_device", return_value=device),
        mock.patch.object(implementation, "missing", return_value=None),
    ):
        yield


def poison():
    """Fills freed memory with NaN bytes, so that an element that nobody writes shows."""
    if jax.default_backend() == "gpu":
        jax.block_until_ready([jnp.full(1 << 24, 0xFF, jnp.uint8) for _ in range(4)])
