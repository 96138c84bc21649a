"""The online operations of a quantized layer, y = Q(x Tᵀ) Q(T⁻ᵀ W), and which code runs them.

The layer is two steps, so that layers which read one array (query, key, value) can share the
first: `encode` transforms and quantizes the rows of x, `matmul` contracts them with a kernel.
The ``"xla"`` implementation is the reference: it runs on any device, is exact to float32
accumulation, and every faster one must agree with it code by code.

Gradients with respect to x are straight-through: rounding counts as the identity.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wush_jax import formats
from wush_jax import hadamard as _hadamard
from wush_jax.formats import Format
from wush_jax.kernel import QuantizedKernel

IMPLEMENTATIONS = ("xla",)


class Activations(NamedTuple):
    """Rows ready for `matmul`.

    Attributes:
      values: [*batch, *tokens, K], the quantized numbers without their global scale.
      global_scale: float32 [*batch, 1, 1], or None where activations are not quantized.
    """

    values: Float[Array, "... K"]
    global_scale: Float[Array, "... 1 1"] | None


class Choice(NamedTuple):
    """An implementation and the reason for it."""

    implementation: str
    reason: str


def choose(kernel: QuantizedKernel, platform: str, implementation: str | None = None) -> Choice:
    """Which implementation ``kernel`` gets on ``platform`` ("cpu", "gpu", ...).

    Raises:
      ValueError: the name is unknown.
    """
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(
            f"unknown implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    if implementation is not None:
        return Choice(implementation, "asked for by name")
    return Choice(
        "xla", f"the reference; exact emulation of {kernel.format} in XLA, no kernel for {platform}"
    )


def linear(
    x: Float[Array, "*batch *tokens K"],
    kernel: QuantizedKernel,
    *,
    implementation: str | None = None,
) -> Float[Array, "*batch *tokens N"]:
    """A whole quantized layer, without bias, in x's dtype. Sums are float32.

    Args:
      x: [*batch, *tokens, K], batch axes as the kernel's.
      kernel: one layer's (not stacked).
      implementation: None for the best on this device, or a name in `IMPLEMENTATIONS`.

    Raises:
      ValueError: x has another number of features than the kernel, or an unknown implementation.
    """
    choose(kernel, jax.default_backend(), implementation)
    return matmul(encode(x, kernel), kernel, x.dtype)


def encode(x: Float[Array, "*batch *tokens K"], kernel: QuantizedKernel) -> Activations:
    """Q(x Tᵀ): transforms each block of features and quantizes each group.

    The transform multiplies in x's dtype (bfloat16) or float32, and accumulates in float32.
    NaN or Inf in a token reaches that token's groups and no other's.
    """
    if x.shape[-1] != kernel.features:
        raise ValueError(
            f"x has {x.shape[-1]} features (shape {x.shape}); the kernel takes {kernel.features}"
        )
    encode_rows = _per_batch(functools.partial(_encode, kernel=kernel), kernel.batch_ndim)
    return encode_rows(x, kernel.transform, kernel.act_global_scale)


def matmul(
    activations: Activations, kernel: QuantizedKernel, dtype: jnp.dtype
) -> Float[Array, "*batch *tokens N"]:
    """Contracts encoded rows with a kernel: float32 sums, scaled once at the end, then cast.

    Where both sides' numbers are exact in bfloat16 (MXFP4, NVFP4) and ``dtype`` is bfloat16, the
    operands are too; the products and sums are the same numbers as in float32.
    """
    contract = _per_batch(
        functools.partial(_contract, kernel=kernel, dtype=dtype), kernel.batch_ndim
    )
    return contract(activations, kernel.values(), kernel.global_scale)


def rotate(
    x: Float[Array, "*tokens K"], transform: Array | None, kernel: QuantizedKernel
) -> Float[Array, "*tokens Kp"]:
    """x Tᵀ per block, float32, after padding K with zeros."""
    padding = kernel.padded_features - x.shape[-1]
    if padding:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, padding)])
    blocks = x.reshape(*x.shape[:-1], -1, kernel.block)
    operand = x.dtype if x.dtype == jnp.bfloat16 else jnp.float32
    if kernel.transform_name == "hadamard":
        h = jnp.asarray(_hadamard.signs(kernel.block), operand)
        blocks = _dot("...cd,ed->...ce", blocks.astype(operand), h) / jnp.sqrt(
            jnp.float32(kernel.block)
        )
    elif transform is not None:
        blocks = _dot("...cd,ced->...ce", blocks.astype(operand), transform.astype(operand))
    return blocks.reshape(x.shape).astype(jnp.float32)


def _encode(
    x: Array, transform: Array | None, global_scale: Array | None, kernel: QuantizedKernel
) -> Activations:
    rotated = rotate(x, transform, kernel)
    if kernel.act_format is None or global_scale is None:
        return Activations(rotated.astype(x.dtype), None)
    return Activations(
        _straight_through(kernel.act_format, rotated, global_scale.reshape(())), global_scale
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _straight_through(fmt: Format, x: Array, global_scale: Array) -> Array:
    """Quantized values of x without the global scale; their derivative is 1 / global scale."""
    return formats.quantized_values(x, fmt, global_scale=global_scale)[0]


@_straight_through.defjvp
def _straight_through_jvp(fmt: Format, primals, tangents):
    return _straight_through(fmt, *primals), tangents[0] / primals[1]


def _contract(
    activations: Activations,
    weights: Float[Array, "N K"],
    global_scale: Float[Array, "1 1"],
    kernel: QuantizedKernel,
    dtype: jnp.dtype,
) -> Array:
    values, act_global = activations
    exact = kernel.format.exact_in_bf16 and (
        kernel.act_format is None or kernel.act_format.exact_in_bf16
    )
    operand = jnp.bfloat16 if dtype == jnp.bfloat16 and exact else jnp.float32
    y = _dot("...k,nk->...n", values.astype(operand), weights.astype(operand))
    scale = global_scale if act_global is None else global_scale * act_global
    return (y * scale.reshape(())).astype(dtype)


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision="highest", preferred_element_type=jnp.float32)


def _per_batch(function, ndim: int):
    """``function`` mapped over ``ndim`` leading axes of all its arguments."""
    for _ in range(ndim):
        function = jax.vmap(function)
    return function
