"""The implementations of a layer that are compared, by name: what each runs, on which weights."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import wush_jax
from kernels.bench import ceilings, data, qwix_baseline
from kernels.bench.shapes import Case
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import online as ops

BASELINES = ("block_scaled", "qwix")  # slow to compile and to run
ACCUMULATION = "fast"  # of the FP8 products; the default of `wush_jax.ops`


class Program(NamedTuple):
    """``run(x, weights)`` is the layer."""

    run: Callable[[Array, Any], Array]
    weights: Any


class Layer:
    """A synthetic layer of one (K, N, D), and every implementation's form of its weights.

    Args:
      format, act_format, transform: as of `data.make_kernel`.
    """

    def __init__(
        self,
        K: int,
        N: int,
        D: int,
        format: str = "mxfp4",
        act_format: str | None = "mxfp4",
        transform: str = "wush",
    ):
        self.K, self.N, self.D = K, N, D
        key = jax.random.fold_in(jax.random.key(K), N + D)
        self.rows_key, self.kernel_key, self.float_key = jax.random.split(key, 3)
        self.kernel = data.make_kernel(
            self.kernel_key, K, N, D, format, act_format, transform=transform
        )
        self.prepared = wush_jax.prepare(self.kernel)

    def program(self, name: str) -> Program:
        """The implementation ``name``.

        "bf16" is ``x @ kernel`` with the kernel in Flax's order [K, N], "bf16_nk" the same with
        [N, K]; "ours" what `wush_jax` picks by itself for a prepared kernel; "block_scaled" the
        `tl.dot_scaled` kernel on the public layout; "qwix", "qwix_dequantized" the peer. Any other
        name is an implementation of `wush_jax.ops`, given the prepared kernel.
        """
        if name in ("bf16", "bf16_nk"):
            weights = data.float_weights(self.float_key, self.K, self.N)
            return Program(_dot, weights) if name == "bf16" else Program(_dot_nk, weights.T.copy())
        if name in ("qwix", "qwix_dequantized"):
            weights = data.float_weights(self.float_key, self.K, self.N).T.copy()
            run = qwix_baseline.linear if name == "qwix" else qwix_baseline.linear_dequantized
            return Program(run, jax.jit(qwix_baseline.quantize)(weights))
        if name == "ours":
            return Program(linear, self.prepared)
        run = functools.partial(linear, implementation=name)
        return Program(run, self.kernel if name in BASELINES else self.prepared)

    def weight_bits(self) -> float:
        """Bits of a quantized weight, scales included."""
        return self.kernel.format.bits_per_value

    def inputs(self, M: int) -> Array:
        return data.tokens(self.rows_key, M, self.K)

    def error(self, x: Float[Array, "M K"], y: Float[Array, "M N"]) -> float:
        """Relative Frobenius distance of y to the XLA reference, on a part of both.

        64 rows spread over x (repeated where x has fewer) and at most 1024 outputs spread over N;
        so that the reference compiles once for each K, whatever M and N are. Both are rounded to
        bf16, which alone costs up to 2.4e-3.
        """
        part, stride = data.some_outputs(self.kernel)
        rows = np.linspace(0, x.shape[0] - 1, 64).round().astype(int)
        expected = np.asarray(_reference(x[rows], part), np.float64)
        got = np.asarray(y[rows][:, ::stride], np.float64)
        return float(np.linalg.norm(got - expected) / np.linalg.norm(expected))


def linear(
    x: Float[Array, "M K"], kernel: QuantizedKernel, *, implementation: str | None = None
) -> Float[Array, "M N"]:
    return ops.linear(x, kernel, implementation=implementation)


def moved(case: Case, name: str, weight_bits: float) -> float:
    """Bytes that an implementation's layer must move, whatever it moves besides."""
    return case.bytes(16, transform=False) if name.startswith("bf16") else case.bytes(weight_bits)


_reference = jax.jit(functools.partial(linear, implementation="xla"))
_dot_nk = ceilings.dot_kk


def _dot(x: Array, weights: Array) -> Array:
    return jnp.matmul(x, weights)
