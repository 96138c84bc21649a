"""One layer: from its kernel and what entered it to a quantized kernel and its measured error."""

from __future__ import annotations

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wush_jax import formats
from wush_jax.config import LayerConfig
from wush_jax.fitting import measure
from wush_jax.fitting.fit import padded_kernel
from wush_jax.fitting.measure import Measured
from wush_jax.fitting.settle import settle
from wush_jax.formats import exactness
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import online
from wush_jax.solvers.minimise import minimise
from wush_jax.solvers.objective import Objective, noise, objective, rotated_moment
from wush_jax.solvers.rtn import Solution, transformed_weights
from wush_jax.statistics import moments
from wush_jax.transforms.blocks import Blocks, matmul, pad_features
from wush_jax.transforms.rotate import rotate


class Solved(NamedTuple):
    """A solution, the activations' global scale, and the measurements."""

    solution: Solution
    act_global_scale: Float[Array, "1 1"] | None
    measured: Measured


def solve(
    kernel: Float[Array, "K N"],
    forward: Blocks,
    moment: Float[Array, "C B B"],
    rows: Float[Array, "S K"],
    valid: Bool[Array, " S"],
    config: LayerConfig,
) -> Solved:
    """Quantizes a kernel with a fitted transform and measures it on sample tokens.

    The error is the true quantizer's, activations included, in float32.

    Args:
      kernel: [K, N], K not padded.
      forward: T, float32 [C, D, D], of the padded K.
      moment: E[x xᵀ] in blocks of `LayerConfig.moment_block`; not looked at by plain rounding.
      rows, valid: sample tokens.
    """
    unstored = config.transform in ("identity", "hadamard")
    name = config.transform if unstored else "wush"  # all stored ones run the same code
    if config.solver == "rtn" and not config.scale_search:
        return _solve(kernel, forward, None, rows, valid, measure.rounding_only(config, name))
    how = dataclasses.replace(config, transform=name, strength=1.0, gauges=1, candidates=())
    return settle(_solve(kernel, forward, moment, rows, valid, how))


@functools.partial(jax.jit, static_argnames="config")
def _solve(
    kernel: Array,
    forward: Blocks,
    moment: Array | None,
    rows: Array,
    valid: Array,
    config: LayerConfig,
) -> Solved:
    x = measure.tokens(rows, valid)
    padded = config.padded(kernel.shape[0], "kernel")
    a, stored = transformed_weights(padded_kernel(kernel, padded), forward, config.transform)
    hadamard_block = config.block if config.transform == "hadamard" else None
    rotated = rotate(pad_features(x, padded), stored, hadamard_block)
    act_global, act_span, act_range = None, jnp.zeros((), jnp.float32), exactness.of_values(rotated)
    if config.act_format is not None:
        act_global = measure.act_global_scale(rotated, config.act_format, config.format)
        encoded = formats.quantize(rotated, config.act_format, global_scale=act_global.reshape(()))
        act_span = measure.span(encoded.scales, encoded.codes, config.act_format)
        act_range = measure.exponent_range(encoded.scales, encoded.codes, config.act_format)
    wanted = None
    if moment is not None:
        t = forward if stored is None else stored.astype(jnp.float32)
        wanted = _objective(a, t, moment, rotated, act_global, valid, padded, config)
    solution = minimise(a, stored, wanted, config)
    y = online.linear(
        x, as_kernel(solution, act_global, kernel.shape, config), implementation="xla"
    )
    exact = matmul(x, kernel.astype(jnp.float32))

    measured = Measured(
        measure.relative_error(y, exact),
        measure.span(solution.scales, solution.codes, config.format),
        act_span,
        measure.exponent_range(solution.scales, solution.codes, config.format),
        jnp.asarray(act_range),
    )
    return Solved(solution, act_global, measured)


def _objective(
    a: Float[Array, "K N"],
    t: Blocks,
    moment: Float[Array, "C B B"],
    rotated: Float[Array, "S K"],
    act_global_scale: Array | None,
    valid: Bool[Array, " S"],
    padded: int,
    config: LayerConfig,
) -> Objective:
    block = padded if config.solver == "gptq" else config.moment_block(padded)
    blocks = moments.diagonal_blocks(moment, block, padded)
    activations = None
    if act_global_scale is not None and config.objective == "WA":
        assert config.act_format is not None
        scale = act_global_scale.reshape(())
        rounded = formats.fake_quantize(rotated, config.act_format, global_scale=scale)
        activations = noise(rotated, rounded, valid.sum(dtype=jnp.int32), block)
    return objective(a, rotated_moment(blocks, t), activations, config.damping)


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
