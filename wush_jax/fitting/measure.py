"""What sample tokens show of a quantized layer: its error by the true quantizer, and its ranges."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wush_jax import formats
from wush_jax.config import LayerConfig
from wush_jax.formats import Format, exactness
from wush_jax.transforms.blocks import matmul, pad_features

# NVIDIA's two-level recipe derives the activations' global scale from their largest magnitude. At
# inference it is static, taken from calibration, so leave room for what calibration did not see:
# E4M3 scales have 15 octaves of normal numbers, three of them cost nothing.
ACTIVATION_HEADROOM = 8.0


class Measured(NamedTuple):
    """What the sample tokens show of a solution.

    Attributes:
      error: ‖y - xW‖² / ‖xW‖².
      weight_span, act_span: log2 of the largest over the smallest non-zero group scale.
      weight_range, act_range: int32 [2], see `exactness.Range`; zeros where the format has none.
    """

    error: Float[Array, ""]
    weight_span: Float[Array, ""]
    act_span: Float[Array, ""]
    weight_range: Int[Array, " 2"]
    act_range: Int[Array, " 2"]


def tokens(rows: Float[Array, "S K"], valid: Bool[Array, " S"]) -> Float[Array, "S K"]:
    """Sample tokens in float32, zeros where there is none."""
    return jnp.where(valid[:, None], rows, 0).astype(jnp.float32)


def orthogonal_error(
    kernel: Float[Array, "K N"],
    t: Float[Array, "D D"],
    rows: Float[Array, "S K"],
    valid: Bool[Array, " S"],
    config: LayerConfig,
) -> Float[Array, ""]:
    """What RTN would measure with one orthogonal T (identity, Hadamard) for every block."""
    return _orthogonal_error(kernel, t, rows, valid, rounding_only(config, "identity"))


def rounding_only(config: LayerConfig, transform: str) -> LayerConfig:
    """``config`` without what rounding to nearest does not look at: fewer functions to compile."""
    return dataclasses.replace(
        config,
        transform=transform,
        strength=1.0,
        damping=0.0,
        gauges=1,
        solver="rtn",
        scale_search=False,
        objective="WA",
        refine=0,
        candidates=(),
    )


@functools.partial(jax.jit, static_argnames="config")
def _orthogonal_error(
    kernel: Array, t: Array, rows: Array, valid: Array, config: LayerConfig
) -> Array:
    padded = config.padded(kernel.shape[0], "kernel")

    def rotate(x: Float[Array, "R K"]) -> Array:
        blocks = pad_features(x, padded).reshape(x.shape[0], -1, config.block)
        return matmul(blocks, t.T).reshape(x.shape[0], padded)

    x = tokens(rows, valid)
    w = kernel.astype(jnp.float32)
    rotated = rotate(x)
    if config.act_format is not None:
        scale = act_global_scale(rotated, config.act_format, config.format).reshape(())
        rotated = formats.fake_quantize(rotated, config.act_format, global_scale=scale)
    weights = formats.fake_quantize(rotate(w.T), config.format)
    y = matmul(rotated, weights.T)
    return relative_error(y, matmul(x, w))


def act_global_scale(
    rotated: Float[Array, "S K"], act_format: Format, fmt: Format
) -> Float[Array, "1 1"]:
    """The activations' multiplier: the formats' constant, or from the sample's largest value."""
    constant = formats.activation_scale(act_format, fmt)
    if constant is not None:
        return jnp.full((1, 1), constant, jnp.float32)
    return (ACTIVATION_HEADROOM * formats.data_global_scale(rotated, act_format)).reshape(1, 1)


def span(scales: Array, codes: Array, fmt: Format) -> Float[Array, ""]:
    """log2(largest / smallest) of the scales of non-zero groups; 0 if there is none."""
    values = formats.scales_to_values(scales, fmt)
    elements = formats.codes_to_values(codes, fmt).reshape(*scales.shape, fmt.group_size)
    used = (values > 0) & (elements != 0).any(-1)
    exponents = jnp.log2(jnp.where(used, values, 1))
    top = jnp.max(jnp.where(used, exponents, -jnp.inf))
    bottom = jnp.min(jnp.where(used, exponents, jnp.inf))
    return jnp.where(used.any(), top - bottom, 0.0)


def exponent_range(scales: Array, codes: Array, fmt: Format) -> Int[Array, " 2"]:
    """Exponents of the non-zero groups, lowest and highest; zeros for other formats than MXFP4."""
    if fmt.name != "mxfp4":
        return jnp.zeros(2, jnp.int32)
    return jnp.stack(exactness.of_groups(scales, codes, fmt))


def relative_error(y: Array, exact: Array) -> Array:
    """‖y - exact‖² / ‖exact‖², 0 where both are zero."""
    signal = jnp.sum(exact**2)
    return jnp.where(signal > 0, jnp.sum((y - exact) ** 2) / jnp.where(signal > 0, signal, 1), 0)
