"""Synthetic layers: inputs, float weights and `QuantizedKernel`s, made on the device.

Weights are normal, their output channels of different sizes; T is near-orthogonal, a product of
random signs and Hadamard matrices with rows scaled by up to half an octave, different in each
block; activations are normal with channels of different sizes. What a kernel computes depends on
none of this, only its speed on codes that are not all alike.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float

from wush_jax import formats
from wush_jax.formats import exactness as exponents
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.transforms import hadamard
from wush_jax.transforms.rotate import rotate

COLD_BYTES = 400e6  # an H200's L2 cache is 60 MB, and a program may not read all of its leaves
_MOST_COPIES = 32
T = TypeVar("T")


def with_exponents(kernel: QuantizedKernel, rows: Float[Array, "m K"]) -> QuantizedKernel:
    """``kernel`` with what calibration on ``rows``, typical inputs, would have recorded in it."""
    fmt, act = kernel.format, kernel.act_format
    weights, activations = jax.device_get(_ranges(kernel, rows))
    path = {"": [exponents.Range(*map(int, weights))]}
    seen = {"": [exponents.Range(*map(int, activations))]}
    held = exponents.hold(path, seen, fmt, act)
    kind = held.exact_in[""]
    pair = None if kind == "float32" else jnp.asarray(held.exponents, jnp.int32)
    return dataclasses.replace(kernel, exponents=pair, exact_in=kind)


@jax.jit
def _ranges(kernel: QuantizedKernel, rows: Array) -> tuple[Any, Any]:
    rotated = rotate(rows, kernel.transform, kernel.hadamard_block)
    none = (jnp.int32(0), jnp.int32(0))
    fmt, act = kernel.format, kernel.act_format
    weights = exponents.of_groups(kernel.scales, kernel.codes, fmt) if fmt.name == "mxfp4" else none
    if act is None:
        return weights, exponents.of_values(rotated)
    if act.name != "mxfp4":
        return weights, none
    q = formats.quantize(rotated, act, global_scale=formats.activation_scale(act, fmt))
    return weights, exponents.of_groups(q.scales, q.codes, act)


@functools.partial(jax.jit, static_argnums=(1, 2))
def tokens(key: Array, M: int, K: int) -> BFloat16[Array, "M K"]:
    """Inputs of a layer."""
    sizes = np.exp2(0.5 * np.random.default_rng(K).standard_normal(K)).astype(np.float32)
    return (jax.random.normal(key, (M, K)) * sizes[None]).astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnums=(1, 2))
def float_weights(key: Array, K: int, N: int) -> BFloat16[Array, "K N"]:
    """A float kernel, for the baselines."""
    return (jax.random.normal(key, (K, N)) / math.sqrt(K)).astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnums=(1, 2))
def transforms(key: Array, K: int, D: int) -> BFloat16[Array, "C D D"]:
    """K / D blocks, each diag(s) H diag(±1) H diag(±1), which is orthogonal but for s."""
    h = jnp.asarray(hadamard.matrix(D))
    random = jax.random.uniform(key, (3, K // D, 1, D), minval=-0.5, maxval=0.5)
    signs = jnp.where(random[:2] < 0, -1.0, 1.0)
    order = np.random.default_rng(D).permutation(D)
    mixed = jnp.matmul(h[None] * signs[0], h[None, order] * signs[1], precision="highest")
    return (jnp.exp2(random[2]).mT * mixed).astype(jnp.bfloat16)


def make_kernel(
    key: Array,
    K: int,
    N: int,
    D: int = 32,
    format: str = "mxfp4",
    act_format: str | None = "mxfp4",
    *,
    transform: str = "wush",
    rows: Float[Array, "m K"] | None = None,
) -> QuantizedKernel:
    """A quantized layer of K inputs and N outputs.

    Args:
      key: a `jax.random.key`.
      D: transform block.
      act_format: None for weight-only.
      transform: "wush" (stored), "hadamard" or "identity".
      rows: typical inputs, for the activations' scales; None for some of `tokens`.
    """
    fmt = formats.get_format(format)
    act = None if act_format is None else formats.get_format(act_format)
    rows = tokens(jax.random.fold_in(key, 0), 64, K) if rows is None else rows
    return with_exponents(_kernel(key, rows, N, D, fmt, act, transform), rows)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def _kernel(
    key: Array,
    rows: Array,
    N: int,
    D: int,
    fmt: formats.Format,
    act: formats.Format | None,
    transform: str,
) -> QuantizedKernel:
    K = rows.shape[-1]
    sizes = np.exp2(np.random.default_rng(N).integers(-1, 2, (N, 1))).astype(np.float32)
    w = jax.random.normal(jax.random.fold_in(key, 1), (N, K)) * (sizes / math.sqrt(K))
    q = formats.quantize(w, fmt)
    kernel = QuantizedKernel(
        codes=q.codes,
        scales=q.scales,
        global_scale=q.global_scale.reshape(1, 1),
        act_global_scale=None,
        transform=transforms(jax.random.fold_in(key, 2), K, D) if transform == "wush" else None,
        format=fmt,
        act_format=act,
        transform_name=transform,
        block=D,
        kernel_shape=(K, N),
        roles="kn",
        dtype="bfloat16",
    )
    if act is None:
        return kernel
    scale = formats.activation_scale(act, fmt)
    if scale is None:
        rotated = rotate(rows, kernel.transform, kernel.hadamard_block)
        scale = formats.data_global_scale(rotated, act)
    scale = jnp.asarray(scale, jnp.float32).reshape(1, 1)
    return dataclasses.replace(kernel, act_global_scale=scale)


def some_outputs(kernel: QuantizedKernel, most: int = 1024) -> tuple[QuantizedKernel, int]:
    """Every s-th output of an unprepared kernel, at most ``most`` of them, and s."""
    stride = -(-kernel.outputs // most)
    codes, scales = kernel.codes[::stride], kernel.scales[::stride]
    shape = (kernel.features, codes.shape[0])
    part = dataclasses.replace(kernel, codes=codes, scales=scales, kernel_shape=shape)
    return part, stride


def nbytes(tree: Any) -> int:
    """Bytes of all arrays in a tree; two 4-bit floats count one byte, as a GPU stores them."""
    return sum(
        math.prod(leaf.shape) * jax.dtypes.itemsize_bits(leaf.dtype) // 8
        for leaf in jax.tree.leaves(tree)
    )


def copies(tree: T, total: float = COLD_BYTES) -> list[T]:
    """``tree`` and as many copies of it as exceed ``total`` bytes together: cold when rotated."""
    count = int(np.clip(math.ceil(total / max(nbytes(tree), 1)), 1, _MOST_COPIES))
    return [tree, *(jax.tree.map(jnp.copy, tree) for _ in range(count - 1))]
