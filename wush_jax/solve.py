"""One layer: from its kernel and what entered it to a quantized kernel and its measured error."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from wush_jax import formats, gauge, moments, ops, transforms
from wush_jax.config import LayerConfig
from wush_jax.formats import Format
from wush_jax.kernel import QuantizedKernel
from wush_jax.moments import Moments
from wush_jax.solvers.rtn import Solution, rtn
from wush_jax.statistics import pad_features
from wush_jax.transforms import Blocks, Transform

# NVIDIA's two-level recipe derives the activations' global scale from their largest magnitude. At
# inference it is static, taken from calibration, so leave room for what calibration did not see:
# E4M3 scales have 15 octaves of normal numbers, three of them cost nothing.
ACTIVATION_HEADROOM = 8.0

_CHUNK = 16  # blocks fitted at once


class Fit(NamedTuple):
    """Transforms and what they are expected to do, per block.

    Attributes:
      transform: T and T⁻ᵀ, float32 [C, D, D].
      predicted, predicted_hadamard: J of the transform, and of Hadamard.
      condition: cond(T).
    """

    transform: Transform
    predicted: Float[Array, " C"]
    predicted_hadamard: Float[Array, " C"]
    condition: Float[Array, " C"]


class Measured(NamedTuple):
    """What the sample tokens show of a solution.

    Attributes:
      error: ‖y - xW‖² / ‖xW‖².
      weight_span, act_span: log2 of the largest over the smallest non-zero group scale.
    """

    error: Float[Array, ""]
    weight_span: Float[Array, ""]
    act_span: Float[Array, ""]


def fit(
    seen: Moments,
    rows: Float[Array, "S K"],
    valid: Bool[Array, " S"],
    kernels: Sequence[Float[Array, "K N"]],
    key: PRNGKeyArray,
    config: LayerConfig,
) -> Fit:
    """The transform for layers that read one input, fitted on all their kernels' outputs together.

    Args:
      seen: moments of the input, total [C, D, D].
      rows, valid: sample tokens of the input.
      kernels: float kernels [K, N_i].
    """
    sx, sw, padded = _block_moments(seen, tuple(kernels), config)
    blocks = padded[0].shape[0] // config.block
    chunks = [_fit_chunk(sx[i], sw[i], jax.random.fold_in(key, i), config) for i in range(len(sx))]
    # XLA's CPU client can deadlock when LAPACK calls queue up behind other work: wait for them.
    fitted = jax.block_until_ready(_join(chunks, blocks))
    sx = sx.reshape(-1, *sx.shape[2:])[:blocks]
    chosen = gauge.choose(fitted.transform, sx, padded, rows, valid, config, key)
    return fitted._replace(transform=chosen)


@functools.partial(jax.jit, static_argnames="config")
def _block_moments(
    seen: Moments, kernels: tuple[Float[Array, "K N"], ...], config: LayerConfig
) -> tuple[Blocks, Blocks, list[Float[Array, "Kp N"]]]:
    """Sx and Sw in chunks of blocks, [chunks, _CHUNK, D, D], and the kernels padded, in float32.

    Chunks of one size mean that a single compilation of `_fit_chunk` serves layers of every K.
    """
    features = config.padded(kernels[0].shape[0], "kernel")
    padded = [_padded(kernel, features) for kernel in kernels]
    outputs = sum(kernel.shape[1] for kernel in kernels)
    shares = [moments.weight_moment(w, config.block) * (w.shape[1] / outputs) for w in padded]
    sw = jnp.sum(jnp.stack(shares), axis=0)

    def chunked(s: Blocks) -> Blocks:
        blocks = features // config.block
        total = blocks + -blocks % _CHUNK
        s = jnp.pad(s, ((0, total - s.shape[0]), (0, 0), (0, 0)))
        return s.reshape(-1, _CHUNK, config.block, config.block)

    return chunked(moments.second_moment(seen)), chunked(sw), padded


@functools.partial(jax.jit, static_argnums=1)
def _join(chunks: list[Fit], blocks: int) -> Fit:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:blocks], *chunks)


@functools.partial(jax.jit, static_argnames="config")
def _fit_chunk(sx: Blocks, sw: Blocks, key: PRNGKeyArray, config: LayerConfig) -> Fit:
    chosen = transforms.make(
        config.transform, sx, sw, strength=config.strength, damping=config.damping, key=key
    )
    sx, sw = transforms.damp(sx, config.damping), transforms.damp(sw, config.damping)
    return Fit(
        chosen,
        transforms.predicted_loss(chosen, sx, sw),
        transforms.predicted_loss(transforms.hadamard(sx, sw), sx, sw),
        transforms.condition_number(chosen.forward),
    )


class Solved(NamedTuple):
    """A solution, the activations' global scale, and the measurements."""

    solution: Solution
    act_global_scale: Float[Array, "1 1"] | None
    measured: Measured


@functools.partial(jax.jit, static_argnames="config")
def orthogonal_error(
    kernel: Float[Array, "K N"],
    t: Float[Array, "D D"],
    rows: Float[Array, "S K"],
    valid: Bool[Array, " S"],
    config: LayerConfig,
) -> Float[Array, ""]:
    """What RTN would measure with one orthogonal T (identity, Hadamard) for every block."""
    padded = config.padded(kernel.shape[0], "kernel")

    def rotate(x: Float[Array, "R K"]) -> Array:
        blocks = pad_features(x, padded).reshape(x.shape[0], -1, config.block)
        return jnp.matmul(blocks, t.T, precision="highest").reshape(x.shape[0], padded)

    x = jnp.where(valid[:, None], rows, 0).astype(jnp.float32)
    w = kernel.astype(jnp.float32)
    rotated = rotate(x)
    if config.act_format is not None:
        scale = _act_global_scale(rotated, config.act_format).reshape(())
        rotated = formats.fake_quantize(rotated, config.act_format, global_scale=scale)
    weights = formats.fake_quantize(rotate(w.T), config.format)
    y = jnp.matmul(rotated, weights.T, precision="highest")
    return _relative_error(y, jnp.matmul(x, w, precision="highest"))


@functools.partial(jax.jit, static_argnames="config")
def solve(
    kernel: Float[Array, "K N"],
    forward: Blocks,
    rows: Float[Array, "S K"],
    valid: Bool[Array, " S"],
    config: LayerConfig,
) -> Solved:
    """Quantizes a kernel with a fitted transform and measures it on sample tokens.

    The error is the true quantizer's, activations included, in float32.
    """
    x = jnp.where(valid[:, None], rows, 0).astype(jnp.float32)
    padded = config.padded(kernel.shape[0], "kernel")
    solution = rtn(_padded(kernel, padded), forward, config)
    probe = as_kernel(solution, None, kernel.shape, config)
    rotated = ops.rotate(x, solution.transform, probe)
    act_global, act_span = None, jnp.zeros(())
    if config.act_format is not None:
        act_global = _act_global_scale(rotated, config.act_format)
        encoded = formats.quantize(rotated, config.act_format, global_scale=act_global.reshape(()))
        act_span = _span(encoded.scales, encoded.codes, config.act_format)
    y = ops.linear(x, as_kernel(solution, act_global, kernel.shape, config))
    exact = jnp.matmul(x, kernel.astype(jnp.float32), precision="highest")
    measured = Measured(
        _relative_error(y, exact),
        _span(solution.scales, solution.codes, config.format),
        act_span,
    )
    return Solved(solution, act_global, measured)


def as_kernel(
    solution: Solution,
    act_global_scale: Array | None,
    kernel_shape: tuple[int, ...],
    config: LayerConfig,
) -> QuantizedKernel:
    """A solution [K, N] as a kernel of its own."""
    return QuantizedKernel(
        *solution[:3],
        act_global_scale,
        solution.transform,
        format=config.format,
        act_format=config.act_format,
        transform_name=config.transform,
        block=config.block,
        kernel_shape=kernel_shape,
        roles="kn",
        dtype="float32",
    )


def _act_global_scale(rotated: Float[Array, "S K"], fmt: Format) -> Float[Array, "1 1"]:
    """The activations' multiplier: the rule's constant, or from the sample's largest magnitude."""
    scale = formats.data_global_scale(rotated, fmt)
    scale = scale if fmt.global_scale is not None else ACTIVATION_HEADROOM * scale
    return scale.reshape(1, 1)


def _span(scales: Array, codes: Array, fmt: Format) -> Float[Array, ""]:
    """log2(largest / smallest) of the scales of non-zero groups; 0 if there is none."""
    values = formats.scales_to_values(scales, fmt)
    elements = formats.codes_to_values(codes, fmt).reshape(*scales.shape, fmt.group_size)
    used = (values > 0) & (elements != 0).any(-1)
    exponents = jnp.log2(jnp.where(used, values, 1))
    top = jnp.max(jnp.where(used, exponents, -jnp.inf))
    bottom = jnp.min(jnp.where(used, exponents, jnp.inf))
    return jnp.where(used.any(), top - bottom, 0.0)


def _relative_error(y: Array, exact: Array) -> Array:
    """‖y - exact‖² / ‖exact‖², 0 where both are zero."""
    signal = jnp.sum(exact**2)
    return jnp.where(signal > 0, jnp.sum((y - exact) ** 2) / jnp.where(signal > 0, signal, 1), 0)


def _padded(kernel: Float[Array, "K N"], features: int) -> Float[Array, "Kp N"]:
    return pad_features(kernel.T, features).T.astype(jnp.float32)
