"""The online operations in XLA: what every implementation must agree with, code by code.

They run on any device, and are exact to float32 accumulation. Gradients are straight-through:
rounding counts as the identity.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wush_jax import formats
from wush_jax.formats import Format
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.transforms import hadamard as _hadamard
from wush_jax.transforms.blocks import pad_features


def encode(
    x: Float[Array, "*tokens K"],
    transform: Array | None,
    global_scale: Array | None,
    kernel: QuantizedKernel,
) -> Float[Array, "*tokens Kp"]:
    """Q(x Tᵀ) without its global scale; x Tᵀ itself, in x's dtype, for weight-only layers."""
    rotated = rotate(x, transform, kernel)
    if kernel.act_format is None or global_scale is None:
        return rotated.astype(x.dtype)
    # A constant, where the format has one, is divided by exactly on every backend.
    constant = formats.activation_scale(kernel.act_format, kernel.format)
    scale = global_scale.reshape(()) if constant is None else jnp.float32(constant)
    return _straight_through(kernel.act_format, rotated, scale)


def rotate(
    x: Float[Array, "*tokens K"], transform: Array | None, kernel: QuantizedKernel
) -> Float[Array, "*tokens Kp"]:
    """x Tᵀ per block, float32, after padding K with zeros."""
    x = pad_features(x, kernel.padded_features)
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


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _straight_through(fmt: Format, x: Array, global_scale: Array) -> Array:
    """Quantized values of x without the global scale; their derivative is 1 / global scale."""
    return formats.quantized_values(x, fmt, global_scale=global_scale)[0]


@_straight_through.defjvp
def _straight_through_jvp(fmt: Format, primals, tangents):
    return _straight_through(fmt, *primals), tangents[0] / primals[1]


def contract(
    values: Float[Array, "*tokens K"],
    act_global: Float[Array, "1 1"] | None,
    weights: Float[Array, "N K"],
    global_scale: Float[Array, "1 1"],
    kernel: QuantizedKernel,
    dtype: jnp.dtype,
) -> Float[Array, "*tokens N"]:
    """Encoded rows times `QuantizedKernel.values`, float32 sums, scaled once, then cast."""
    exact = kernel.format.exact_in_bf16 and (
        kernel.act_format is None or kernel.act_format.exact_in_bf16
    )
    operand = jnp.bfloat16 if dtype == jnp.bfloat16 and exact else jnp.float32
    y = _dot("...k,nk->...n", values.astype(operand), weights.astype(operand))
    scale = global_scale if act_global is None else global_scale * act_global
    return (y * scale.reshape(())).astype(dtype)


def _dot(equation: str, a: Array, b: Array) -> Array:
    return jnp.einsum(equation, a, b, precision="highest", preferred_element_type=jnp.float32)
