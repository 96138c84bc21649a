"""``xla``: the reference, which every other implementation must agree with, code by code.

It runs on any device, and is exact to float32 accumulation. Gradients are straight-through:
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
from wush_jax.ops.device import Device
from wush_jax.ops.implementations.base import Implementation, Regime, per_batch
from wush_jax.transforms.blocks import pad_features
from wush_jax.transforms.rotate import rotate


class Xla(Implementation):
    """Exact emulation in XLA."""

    name = "xla"
    summary = "the reference: exact emulation in XLA, on any device"
    rows = "values"

    def problem(
        self, kernel: QuantizedKernel, device: Device, dtype: jnp.dtype | None = None
    ) -> None:
        return None

    def regimes(self, kernel: QuantizedKernel) -> tuple[Regime, ...]:
        what = "weights dequantized for each product"
        return (
            Regime(
                None,
                what,
                lambda x, kernel, backend: encode(x, kernel),
                lambda rows, kernel, backend, dtype: contract(rows, kernel, dtype),
            ),
        )

    def encode(
        self, x: Float[Array, "*tokens K"], kernel: QuantizedKernel
    ) -> Float[Array, "*tokens Kp"]:
        return per_batch(encode, kernel)(x, kernel)

    def matmul(
        self,
        encoded: Float[Array, "*tokens Kp"],
        source: Float[Array, "*tokens K"],
        kernel: QuantizedKernel,
        dtype: jnp.dtype,
    ) -> Float[Array, "*tokens N"]:
        return per_batch(functools.partial(contract, dtype=dtype), kernel)(encoded, kernel)


def encode(x: Float[Array, "*tokens K"], kernel: QuantizedKernel) -> Float[Array, "*tokens Kp"]:
    """Q(x Tᵀ) without its global scale; x Tᵀ itself, in x's dtype, for weight-only layers."""
    padded = pad_features(x, kernel.padded_features)
    rotated = rotate(padded, kernel.transform, kernel.hadamard_block)
    global_scale = kernel.act_global_scale
    if kernel.act_format is None or global_scale is None:
        return rotated.astype(x.dtype)
    # A constant, where the format has one, is divided by exactly on every backend.
    constant = formats.activation_scale(kernel.act_format, kernel.format)
    scale = global_scale.reshape(()) if constant is None else jnp.float32(constant)
    return _straight_through(kernel.act_format, rotated, scale)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _straight_through(fmt: Format, x: Array, global_scale: Array) -> Array:
    """Quantized values of x without the global scale; their derivative is 1 / global scale."""
    return formats.quantized_values(x, fmt, global_scale=global_scale)[0]


@_straight_through.defjvp
def _straight_through_jvp(fmt: Format, primals, tangents):
    return _straight_through(fmt, *primals), tangents[0] / primals[1]


def contract(
    values: Float[Array, "*tokens Kp"], kernel: QuantizedKernel, dtype: jnp.dtype
) -> Float[Array, "*tokens N"]:
    """Encoded rows times `QuantizedKernel.values`, float32 sums, scaled once, then cast."""
    exact = kernel.format.exact_in_bf16 and (
        kernel.act_format is None or kernel.act_format.exact_in_bf16
    )
    operand = jnp.bfloat16 if dtype == jnp.bfloat16 and exact else jnp.float32
    weights = kernel.values().astype(operand)
    y = jnp.einsum(
        "...k,nk->...n",
        values.astype(operand),
        weights,
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    act_global, scale = kernel.act_global_scale, kernel.global_scale
    scale = scale if act_global is None else scale * act_global
    return (y * scale.reshape(())).astype(dtype)
