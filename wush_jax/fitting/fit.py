"""One group of layers: from the moments of their input to the transform they share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray

from wush_jax.config import LayerConfig
from wush_jax.fitting import gauge
from wush_jax.fitting.settle import settle
from wush_jax.statistics import moments
from wush_jax.statistics.moments import Moments
from wush_jax.transforms import families, loss
from wush_jax.transforms.blocks import Blocks, Transform, damp, pad_features

_CHUNK = 16  # blocks fitted at once


class Fit(NamedTuple):
    """Transforms and what they are expected to do, per block.

    Attributes:
      transform: T and T⁻ᵀ, float32 [C, D, D].
      predicted, predicted_hadamard: J of the transform, and of Hadamard.
      condition: cond(T).
    """

    transform: Transform
    predicted: Float32[Array, " C"]
    predicted_hadamard: Float32[Array, " C"]
    condition: Float32[Array, " C"]


def fit(
    seen: Moments,
    rows: Float[Array, "S K"],
    valid: Bool[Array, " S"],
    kernels: Sequence[Float[Array, "K _"]],
    key: PRNGKeyArray,
    config: LayerConfig,
) -> Fit:
    """The transform for layers that read one input, fitted on all their kernels' outputs together.

    Args:
      seen: moments of the input in blocks of D or more, see `moments.diagonal_blocks`.
      rows, valid: sample tokens of the input.
      kernels: float kernels [K, N_i].
    """
    features = config.padded(kernels[0].shape[0], "kernel")
    sx, sw, padded = _block_moments(seen, tuple(kernels), features, config.block)
    blocks = padded[0].shape[0] // config.block
    how = (config.transform, config.strength, config.damping)
    chunks = [_fit_chunk(sx[i], sw[i], jax.random.fold_in(key, i), *how) for i in range(len(sx))]
    fitted = settle(_join(chunks, blocks))
    sx = sx.reshape(-1, *sx.shape[2:])[:blocks]
    chosen = gauge.choose(fitted.transform, sx, padded, rows, valid, config, key)
    return fitted._replace(transform=chosen)


@functools.partial(jax.jit, static_argnames=("features", "block"))
def _block_moments(
    seen: Moments, kernels: tuple[Float[Array, "K _"], ...], features: int, block: int
) -> tuple[Blocks, Blocks, list[Float32[Array, "Kp _"]]]:
    """Sx and Sw in chunks of blocks, [chunks, _CHUNK, D, D], and the kernels padded, in float32.

    Chunks of one size mean that a single compilation of `_fit_chunk` serves layers of every K.
    """
    padded = [padded_kernel(kernel, features) for kernel in kernels]
    outputs = sum(kernel.shape[1] for kernel in kernels)
    shares = [moments.weight_moment(w, block) * (w.shape[1] / outputs) for w in padded]
    sw = jnp.sum(jnp.stack(shares), axis=0)

    sx = moments.diagonal_blocks(moments.second_moment(seen), block, features)

    def chunked(s: Float32[Array, "C D D"]) -> Float32[Array, "chunks B D D"]:
        blocks = features // block
        total = blocks + -blocks % _CHUNK
        s = jnp.pad(s, ((0, total - s.shape[0]), (0, 0), (0, 0)))
        return s.reshape(-1, _CHUNK, block, block)

    return chunked(sx), chunked(sw), padded


@functools.partial(jax.jit, static_argnums=1)
def _join(chunks: list[Fit], blocks: int) -> Fit:
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[:blocks], *chunks)


@functools.partial(jax.jit, static_argnames=("name", "strength", "damping"))
def _fit_chunk(
    sx: Blocks, sw: Blocks, key: PRNGKeyArray, name: str, strength: float, damping: float
) -> Fit:
    chosen = families.make(name, sx, sw, strength=strength, damping=damping, key=key)
    sx, sw = damp(sx, damping), damp(sw, damping)
    return Fit(
        chosen,
        loss.predicted_loss(chosen, sx, sw),
        loss.predicted_loss(families.hadamard(sx, sw), sx, sw),
        loss.condition_number(chosen.forward),
    )


def padded_kernel(kernel: Float[Array, "K N"], features: int) -> Float32[Array, "{features} N"]:
    """A kernel in float32 with zero rows appended, up to ``features``."""
    return pad_features(kernel.T, features).T.astype(jnp.float32)
