"""Choosing among transforms that the theory cannot tell apart, by what the quantizer does.

WUSH fixes T only up to a gauge: with R = H diag(±1) H (any signs) and γ > 0,

    T -> γ R T,   T⁻ᵀ -> R T⁻ᵀ / γ

leaves TᵀT (up to γ²) and the predicted loss J as they are. The quantizer does tell them apart.
A block with one dominating direction, such as a massive activation, is the extreme: the Hadamard
matrix spreads it into D entries of one magnitude c, and where c falls between grid values all D
round the same way. γ moves c; the signs decide how the other directions add up.

For each block the candidate with the least output error is kept. With Â = Q(A), A = T⁻ᵀ W, and
errors δA = Â - A and δx = Q(Tx) - Tx, a block's error is exactly

    E ‖δxᵀ Â + (Tx)ᵀ δA‖² = tr(ÂÂᵀ E[δx δxᵀ]) + 2 tr(δA Âᵀ E[δx (Tx)ᵀ]) + tr(δA δAᵀ T Sx Tᵀ)

so that D × D matrices are all it takes: the weights' from every output, Sx from every calibration
token, δx's from the sample tokens.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray

from wush_jax import formats
from wush_jax.config import LayerConfig
from wush_jax.fitting import measure
from wush_jax.formats import Format
from wush_jax.transforms import hadamard as _hadamard
from wush_jax.transforms.blocks import Blocks, Transform, matmul

Candidates: TypeAlias = Float32[Array, "R C D D"]

# Families whose T is stored, so that a gauge costs nothing; the mixed ones take signs as well.
_MIXED = ("wush", "diagonal_hadamard")
_SCALED = (*_MIXED, "wus", "diagonal", "random")


def choose(
    transform: Transform,
    sx: Blocks,
    kernels: Sequence[Float32[Array, "K _"]],
    rows: Float[Array, "S Kf"],
    valid: Bool[Array, " S"],
    config: LayerConfig,
    key: PRNGKeyArray,
) -> Transform:
    """The best of ``config.gauges`` gauges of a transform, block by block; the first is I.

    Args:
      transform: T and T⁻ᵀ, [C, D, D].
      sx: second moments of the activations, [C, D, D].
      kernels: float32 kernels [K, N_i] that share the transform, K = C D.
      rows, valid: sample tokens; Kf features, K once padded.
      config: formats; blocks must be whole groups, else the transform comes back unchanged.
      key: for the signs.
    """
    whole = all(
        config.block % fmt.group_size == 0
        for fmt in (config.format, config.act_format)
        if fmt is not None
    )
    if config.gauges <= 1 or config.transform not in _SCALED or not whole:
        return transform
    rotations, scales = _candidates(key, config)
    weights = [_weight_products(k, transform, rotations, scales, config.format) for k in kernels]
    weights = jax.tree.map(lambda *products: sum(products), *weights)
    activations = _activation_products(rows, valid, transform, rotations, scales, config)
    return _apply_best(transform, sx, weights, activations, rotations, scales)


@functools.partial(jax.jit, static_argnames="config")
def _candidates(
    key: PRNGKeyArray, config: LayerConfig
) -> tuple[Float32[Array, "R D D"], Float32[Array, " R"]]:
    """R = H diag(±1) H, orthogonal and symmetric, and γ in [1, 2); the first candidate is I, 1."""
    scales = 2.0 ** (jnp.arange(config.gauges, dtype=jnp.float32) / config.gauges)
    if config.transform not in _MIXED:
        eye = jnp.eye(config.block, dtype=jnp.float32)
        return jnp.broadcast_to(eye, (config.gauges, *eye.shape)), scales
    bits = jax.random.bits(key, (config.gauges, 1, config.block), jnp.uint32).at[0].set(0)
    h = jnp.asarray(_hadamard.matrix(config.block))
    return matmul(jnp.where(bits & 1, -h, h), h), scales


@functools.partial(jax.jit, static_argnames="fmt")
def _weight_products(
    kernel: Float32[Array, "K N"],
    transform: Transform,
    rotations: Float32[Array, "R D D"],
    scales: Float32[Array, " R"],
    fmt: Format,
) -> tuple[Candidates, Candidates, Candidates]:
    """ÂÂᵀ, δA Âᵀ and δA δAᵀ of every candidate and block."""
    blocks = transform.inverse_transpose.shape
    a = matmul(transform.inverse_transpose, kernel.reshape(*blocks[:2], -1))

    def products(candidate: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        r, scale = candidate
        exact = matmul(a.mT, r / scale)  # [C, N, D]: groups run along D
        rounded = formats.fake_quantize(exact, fmt)
        delta = rounded - exact
        return (
            matmul(rounded.mT, rounded),
            matmul(delta.mT, rounded),
            matmul(delta.mT, delta),
        )

    return jax.lax.map(products, (rotations, scales))


@functools.partial(jax.jit, static_argnames="config")
def _activation_products(
    rows: Float[Array, "S Kf"],
    valid: Bool[Array, " S"],
    transform: Transform,
    rotations: Float32[Array, "R D D"],
    scales: Float32[Array, " R"],
    config: LayerConfig,
) -> tuple[Candidates, Candidates]:
    """E[δx δxᵀ] and E[δx (Tx)ᵀ] of every candidate and block; zeros where x is not quantized."""
    t, fmt = transform.forward, config.act_format
    if fmt is None:
        zeros = jnp.zeros((scales.size, *t.shape), jnp.float32)
        return zeros, zeros
    x = measure.tokens(rows, valid)
    x = jnp.pad(x, ((0, 0), (0, t.shape[0] * t.shape[1] - x.shape[1])))
    y = matmul(t, x.T.reshape(*t.shape[:2], -1))  # [C, D, S]
    tokens = jnp.maximum(valid.sum(dtype=jnp.int32), 1).astype(jnp.float32)
    constant = formats.activation_scale(fmt, config.format)

    def products(candidate: tuple[Array, Array]) -> tuple[Array, Array]:
        r, scale = candidate
        exact = matmul(y.mT, r * scale)  # [C, S, D]
        delta = formats.fake_quantize(exact, fmt, global_scale=constant) - exact
        return matmul(delta.mT, delta) / tokens, matmul(delta.mT, exact) / tokens

    return jax.lax.map(products, (rotations, scales))


@jax.jit
def _apply_best(
    transform: Transform,
    sx: Blocks,
    weights: tuple[Candidates, Candidates, Candidates],
    activations: tuple[Candidates, Candidates],
    rotations: Float32[Array, "R D D"],
    scales: Float32[Array, " R"],
) -> Transform:
    rounded, mixed, delta = weights
    act_delta, act_mixed = activations
    t = transform.forward
    moment = matmul(matmul(t, sx), t.mT)
    r = (rotations * scales[:, None, None])[:, None]  # [R, 1, D, D]
    turned = matmul(matmul(r, moment), r)
    errors = _trace(rounded, act_delta) + 2 * _trace(mixed, act_mixed.mT) + _trace(delta, turned)
    best = jnp.argmin(errors, axis=0).astype(jnp.int32)  # [C]
    r, scale = rotations[best], scales[best][:, None, None]
    return Transform(matmul(r * scale, t), matmul(r / scale, transform.inverse_transpose))


def _trace(a: Candidates, b: Candidates) -> Float32[Array, "R C"]:
    """tr(A Bᵀ)."""
    return jnp.sum(a * b, axis=(-2, -1))
