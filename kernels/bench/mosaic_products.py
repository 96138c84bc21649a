"""The Mosaic GPU product as it is tried: its operands, one check of its results, and its time.

Operands hold MXFP4 values whose group exponents spread over five octaves. Errors are relative
Frobenius norms against the float32 product of the same values in bfloat16 (exact products), which
is itself checked against float64 on some rows.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from kernels.bench import timing
from wush_kernels.quantized_matmul.mosaic.config import Config
from wush_kernels.quantized_matmul.mosaic_gpu import MIXED_FP8, mosaic_matmul

E5M2, E4M3 = jnp.float8_e5m2, jnp.float8_e4m3fn
WEIGHTS = E4M3 if MIXED_FP8 else E5M2
F32, BF16 = jnp.float32, jnp.bfloat16
FACTOR = 1 / 9


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def operand(seed: int, rows: int, K: int, dtype):
    """[rows, K] E2M1 values times a power of two a group of 32; exact in E5M2 and E4M3."""
    keys = jax.random.split(jax.random.key(seed), 3)
    grid = jnp.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], F32)
    magnitude = grid[jax.random.randint(keys[0], (rows, K), 0, 8)]
    sign = jax.random.rademacher(keys[1], (rows, K), F32)
    power = jnp.exp2(jax.random.randint(keys[2], (rows, K // 32), -2, 3).astype(F32))
    return (magnitude * sign * jnp.repeat(power, 32, axis=1)).astype(dtype)


@functools.partial(jax.jit, compiler_options={"xla_gpu_autotune_level": 0})
def oracle(a, b, bias):
    """a bᵀ FACTOR + bias, float32: XLA's product of bfloat16, in which all values are exact."""
    a, b = a.astype(BF16), b.astype(BF16)
    y = jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=F32)
    return y * F32(FACTOR) + bias[None]


@functools.partial(jax.jit, static_argnums=2)
def distance(y, expected, activation):
    """Relative Frobenius distance, and whether all of y is finite."""
    if activation is not None:
        expected = getattr(jax.nn, activation)(expected)
    y = y.astype(F32)
    error = jnp.linalg.norm(y - expected) / jnp.linalg.norm(expected)
    return error, jnp.isfinite(y).all()


def poison():
    """Fills freed memory with NaN bytes, so that an output nobody writes shows."""
    jax.block_until_ready([jnp.full(1 << 26, 0xFF, jnp.uint8) for _ in range(4)])


def product(c: Config | None, bias=False, **keywords):
    """The product of (a, b, factor, bias), jitted; c: None for the default configuration."""

    def f(a, b, factor, shift):
        return mosaic_matmul(a, b, factor, bias=shift if bias else None, config=c, **keywords)

    return jax.jit(f)


def check(shape, c, mixed, precise, bias, activation, dtype) -> dict[str, Any]:
    """The error of one product, whether it is within its limit, and the same when run again."""
    M, N, K = shape
    a, b = operand(M, M, K, E5M2), operand(N + 1, N, K, WEIGHTS if mixed else E5M2)
    shift = jax.random.normal(jax.random.key(7), (N,)) * (0.3 * K**0.5 if bias else 0.0)
    f = product(c, bias, precise=precise, activation=activation, dtype=dtype)
    expected = oracle(a, b, shift)
    some = np.unique(np.linspace(0, M - 1, 5).astype(int))
    exact = np.asarray(a)[some].astype(np.float64) @ np.asarray(b).astype(np.float64).T
    exact = exact * FACTOR + np.asarray(shift)
    oracle_error = np.linalg.norm(np.asarray(expected)[some] - exact) / np.linalg.norm(exact)
    poison()
    y = f(a, b, F32(FACTOR), shift)
    error, finite = (v.item() for v in distance(y, expected, activation))
    same = bool(jnp.array_equal(y, f(a, b, F32(FACTOR), shift)))
    limit = 2e-3 if dtype == BF16 else (1e-4 if precise else 1.5e-3)
    good = finite and error <= limit and same and bool(oracle_error < 1e-5)
    note = f"all finite {finite}, twice the same {same}, oracle's error {oracle_error:.1g}"
    return {"error": error, "limit": limit, "pass": good, "note": note}


def timed(f, *args) -> dict[str, Any]:
    """Microseconds of GPU time of one call of jitted f."""
    return {"us": timing.measure(f, *args, iterations=15).us}
