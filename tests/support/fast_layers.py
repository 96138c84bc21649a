"""Kernels of every make for the fast implementations, inputs, and programs to run them."""

import functools

import jax
import jax.numpy as jnp

from kernels.bench.data import make_kernel
from wush_jax.ops import online as ops

K, N = 256, 80
CASES = {
    "mxfp4": {},
    "nvfp4": {"format": "nvfp4", "act_format": "nvfp4"},
    "nvidia": {"format": "nvfp4/nvidia", "act_format": "nvfp4/nvidia"},
    "weights": {"act_format": None},
    "hadamard": {"transform": "hadamard", "D": 64},
    "identity": {"transform": "identity"},
    "int4": {"format": "int4", "act_format": "int4"},
}


@functools.cache
def kernels():
    """Name -> kernel of each of `CASES`."""
    rows = tokens(64, dtype=jnp.float32)
    key = jax.random.key(1)
    return {name: make_kernel(key, K, N, rows=rows, **options) for name, options in CASES.items()}


def tokens(*shape, dtype=jnp.bfloat16):
    return jax.random.normal(jax.random.key(len(shape)), (*shape, K)).astype(dtype)


def compiled(implementation):
    """A program of its own: none that was traced for another device is taken from JAX's cache."""
    return jax.jit(lambda x, kernel: ops.linear(x, kernel, implementation=implementation))


reference = compiled("xla")
