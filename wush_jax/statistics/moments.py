"""Streaming second moments of the rows that enter a linear layer.

Glossary: M tokens, K in-features, D block size, C = K / D blocks, x [M, K].

The second moment is uncentred, E[x xᵀ]. Blockwise it keeps only the C diagonal blocks of D × D
(K × D numbers, what an RTN solver needs); with ``block=K`` it is the full K × K matrix.
A `Moments` is a sum and a count, so two of them add: over batches, over processes, over a mesh
axis (``jax.lax.psum(moments, axis)`` is right as it stands), and over interrupted runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Bool, Float, Float32, Num, UInt32

Mask: TypeAlias = Bool[Array, "*tokens"] | Num[Array, "*tokens"]
Batch: TypeAlias = Float[ArrayLike, "*tokens K"]
BatchMask: TypeAlias = Bool[ArrayLike, "*tokens"] | Num[ArrayLike, "*tokens"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Sum of x_b x_bᵀ over tokens, per block, and how many tokens were summed.

    Attributes:
      total: float32 [*batch, C, D, D].
      count: uint32 [*batch], tokens; exact up to 4e9.
    """

    total: Float32[Array, "*batch C D D"]
    count: UInt32[Array, "*batch"]

    @property
    def block(self) -> int:
        return self.total.shape[-1]

    @property
    def features(self) -> int:
        return self.total.shape[-3] * self.total.shape[-1]

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.total + other.total, self.count + other.count)


def zeros(features: int, block: int | None = None) -> Moments:
    """The empty sum, for K = ``features`` in blocks of ``block`` (None: one full K × K block)."""
    block = features if block is None else block
    _check_divisible(features, block)
    return Moments(
        jnp.zeros((features // block, block, block), jnp.float32), jnp.zeros((), jnp.uint32)
    )


def of(x: Float[Array, "*tokens K"], block: int | None = None, mask: Mask | None = None) -> Moments:
    """Moments of one batch of activations.

    The products accumulate in float32 straight from the input's own dtype: a bfloat16 x is never
    copied to float32.

    Args:
      x: [*tokens, K], any float dtype.
      block: D; None for the full K × K matrix.
      mask: [*tokens], non-zero where a token counts. Padding must not reach the statistics, and
        a NaN in an ignored token does not.

    Raises:
      ValueError: K is not a multiple of D, or the mask's shape is not the tokens' shape.
    """
    features = x.shape[-1]
    block = features if block is None else block
    _check_divisible(features, block)
    if mask is not None:
        if mask.shape != x.shape[:-1]:
            raise ValueError(f"mask has shape {mask.shape}; the tokens' shape is {x.shape[:-1]}")
        kept = mask.astype(bool)
        x = jnp.where(kept[..., None], x, jnp.zeros((), x.dtype))
        count = jnp.sum(kept, dtype=jnp.uint32)
    else:
        count = jnp.asarray(x.size // features, jnp.uint32)
    blocks = x.reshape(-1, features // block, block).swapaxes(0, 1)
    return Moments(_gram(blocks), count)


def update(moments: Moments, x: Float[Array, "*tokens K"], mask: Mask | None = None) -> Moments:
    """``moments`` plus those of one more batch."""
    return moments + of(x, moments.block, mask)


_update = jax.jit(update, donate_argnums=0)


def stream(
    batches: Iterable[Batch | tuple[Batch, BatchMask]],
    block: int | None = None,
    *,
    start: Moments | None = None,
) -> Moments:
    """One pass over any iterable of activation batches (or of ``(x, mask)`` pairs).

    Args:
      batches: arrays [*tokens, K], or pairs of such an array and its mask. Consumed once.
      block: D; None for the full matrix.
      start: a sum to go on from (a resumed run); not modified.

    Raises:
      ValueError: there was no batch at all.
    """
    moments = None if start is None else jax.tree.map(jnp.copy, start)
    for batch in batches:
        x, mask = batch if isinstance(batch, tuple) else (batch, None)
        x = jnp.asarray(x)
        moments = zeros(x.shape[-1], block) if moments is None else moments
        moments = _update(moments, x, mask)
    if moments is None:
        raise ValueError("no batch: second moments need at least one batch of activations")
    return moments


def second_moment(moments: Moments) -> Float32[Array, "*batch C D D"]:
    """E[x xᵀ] per block, symmetric: [*batch, C, D, D]. NaN where no token was counted."""
    mean = moments.total / moments.count.astype(jnp.float32)[..., None, None, None]
    return (mean + mean.mT) / 2


def diagonal_blocks(
    moment: Float[Array, "C B B"], block: int, features: int
) -> Float[Array, "E D D"]:
    """The diagonal blocks of D of a second moment in blocks of B, for K = ``features``.

    Args:
      moment: [C, B, B]; one block (the full moment) may be smaller than ``features``, and so may
        several be fewer: zeros stand for what is missing (padded features).
      block: D, at most B and a divisor of it, or of ``features`` where C is 1.

    Raises:
      ValueError: the moment's blocks are smaller than D, or do not split.
    """
    count, size = moment.shape[:2]
    if count == 1:
        missing = max(features - size, 0)
        moment = jnp.pad(moment, ((0, 0), (0, missing), (0, missing)))
        size += missing
    if size % block:
        raise ValueError(
            f"second moments in blocks of {size} hold no blocks of {block}: calibrate anew, with "
            "full moments (full=True)"
        )
    parts = moment.reshape(count, size // block, block, size // block, block)
    blocks = jnp.einsum("cidie->cide", parts).reshape(-1, block, block)
    return jnp.pad(blocks, ((0, features // block - len(blocks)), (0, 0), (0, 0)))


def weight_moment(kernel: Float[Array, "K N"], block: int) -> Float32[Array, "C D D"]:
    """Sw = W_b W_bᵀ / N per block of D rows of a kernel [K, N] (DESIGN: over all N outputs).

    For layers that share an input, concatenate their kernels along N first.
    """
    features, outputs = kernel.shape
    _check_divisible(features, block)
    blocks = kernel.reshape(features // block, block, outputs)
    return _gram(blocks.mT) / outputs


def check(moments: Moments, path: str) -> None:
    """Raises ValueError, naming the module, if no token was seen or a sum is not finite."""
    if not bool((moments.count > 0).all()):
        raise ValueError(f"{path}: no token reached this layer in calibration; feed it, or skip it")
    if not bool(jnp.isfinite(moments.total).all()):
        raise ValueError(
            f"{path}: the second moments of its calibration inputs hold NaN or Inf; "
            "a batch is bad (mask its padding) or float32 overflowed"
        )


def _gram(blocks: Float[Array, "C M D"]) -> Float32[Array, "C D D"]:
    """Σₘ b bᵀ per block, in float32 whatever the input's dtype (float64 is narrowed first)."""
    if jnp.finfo(blocks.dtype).bits > 32:
        blocks = blocks.astype(jnp.float32)
    return jnp.einsum(
        "cmd,cme->cde", blocks, blocks, precision="highest", preferred_element_type=jnp.float32
    )


def _check_divisible(features: int, block: int) -> None:
    if block < 1 or features % block:
        raise ValueError(f"K={features} in-features do not split into blocks of D={block}")
