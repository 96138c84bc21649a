"""One batch as one layer sees it: second moments of every token, and a sample of the tokens.

The moments see every token. The sample is a random subset of bounded size, on which the true
quantizer is later measured; `running` says how the batches' samples become one.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray, UInt32

from wush_jax.statistics import moments as moments_lib
from wush_jax.statistics.moments import Mask
from wush_jax.transforms.blocks import pad_features


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Observation:
    """One batch as one layer sees it: arrays of rank two and more, so that Flax can stack them.

    Attributes:
      total: float32 [*batch, C, D, D], sum of x_b x_bᵀ.
      count: uint32 [*batch, 1, 1], tokens.
      rows: [*batch, S, K], tokens drawn at random without replacement, in x's dtype.
      valid: bool [*batch, S, 1], false where there were fewer than S tokens.
    """

    total: Float32[Array, "*batch C D D"]
    count: UInt32[Array, "*batch 1 1"]
    rows: Float[Array, "*batch S K"]
    valid: Bool[Array, "*batch S 1"]


def observe(
    x: Float[Array, "*tokens K"], block: int, sample: int, mask: Mask | None
) -> Observation:
    """Moments and a sample of the tokens of one batch. K is padded with zeros to whole blocks.

    Args:
      x: [*tokens, K].
      block: D.
      sample: S.
      mask: [*tokens], non-zero where a token counts; None for all.
    """
    x = x.reshape(-1, x.shape[-1])
    mask = None if mask is None else mask.reshape(-1)
    summed = moments_lib.of(pad_features(x, block), block, mask)
    scores = jax.random.uniform(jax.random.key(0), x.shape[:1], jnp.float32)
    scores = scores if mask is None else jnp.where(mask.astype(bool), scores, -1.0)
    scores, picked = jax.lax.top_k(scores, min(sample, x.shape[0]))
    missing = sample - picked.size
    rows = jnp.pad(jnp.where(scores[:, None] >= 0, x[picked], 0), ((0, missing), (0, 0)))
    valid = jnp.pad(scores >= 0, (0, missing))
    return Observation(summed.total, summed.count.reshape(1, 1), rows, valid[:, None])


def combine(first: Observation, second: Observation) -> Observation:
    """Two observations of the same layer within one batch (a module called twice) as one."""
    size = first.rows.shape[-2]
    rows = jnp.concatenate([first.rows, second.rows], axis=-2)
    valid = jnp.concatenate([first.valid, second.valid], axis=-2)
    seed = jax.lax.bitcast_convert_type(first.total.ravel()[0], jnp.int32)
    keys = jax.random.split(jax.random.key(seed))
    priorities = [priority(seen, key) for seen, key in zip((first, second), keys, strict=True)]
    _, kept = jax.lax.top_k(jnp.concatenate(priorities, axis=-1), size)
    return Observation(
        first.total + second.total,
        first.count + second.count,
        jnp.take_along_axis(rows, kept[..., None], axis=-2),
        jnp.take_along_axis(valid, kept[..., None], axis=-2),
    )


def priority(new: Observation, key: PRNGKeyArray) -> Float32[Array, "*batch S"]:
    """log(u) / w, w the tokens that a row stands for."""
    valid = new.valid[..., 0]
    kept = valid.sum(-1, keepdims=True, dtype=jnp.float32)
    represented = new.count[..., 0].astype(jnp.float32) / jnp.maximum(kept, 1)
    u = jax.random.uniform(key, valid.shape, jnp.float32, jnp.finfo(jnp.float32).tiny)
    return jnp.where(valid, jnp.log(u) / jnp.maximum(represented, 1), -jnp.inf)
