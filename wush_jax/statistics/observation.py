"""What calibration keeps of one layer's input: second moments of every token, and a token sample.

The moments see every token. The sample is a random subset of bounded size, drawn in one pass, on
which the true quantizer is later measured: each batch offers some of its tokens, and each offered
token competes with the weight of the tokens it stands for (Efraimidis & Spirakis 2006). That is
uniform for batches of one size, and close to it otherwise.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from wush_jax.statistics import moments as moments_lib
from wush_jax.statistics.moments import Mask, Moments


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

    total: Float[Array, "*batch C D D"]
    count: Array
    rows: Float[Array, "*batch S K"]
    valid: Array


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
    scores = jax.random.uniform(jax.random.key(0), x.shape[:1])
    scores = scores if mask is None else jnp.where(mask != 0, scores, -1.0)
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
    priority = [_priority(seen, key) for seen, key in zip((first, second), keys, strict=True)]
    _, kept = jax.lax.top_k(jnp.concatenate(priority, axis=-1), size)
    return Observation(
        first.total + second.total,
        first.count + second.count,
        jnp.take_along_axis(rows, kept[..., None], axis=-2),
        jnp.take_along_axis(valid, kept[..., None], axis=-2),
    )


def pad_features(x: Float[Array, "*tokens K"], unit: int) -> Float[Array, "*tokens Kp"]:
    """x with zero features appended, up to a multiple of ``unit``."""
    missing = -x.shape[-1] % unit
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Statistics:
    """The running state: moments, and the sample with each row's priority to stay in it.

    Attributes:
      moments: of every token so far.
      rows: [*batch, S, K].
      priority: float32 [*batch, S]; -inf where there is no row.
    """

    moments: Moments
    rows: Float[Array, "*batch S K"]
    priority: Float[Array, "*batch S"]

    @classmethod
    def start(cls, first: Observation, key: PRNGKeyArray) -> Statistics:
        moments = Moments(first.total, first.count[..., 0, 0])
        return cls(moments, first.rows, _priority(first, key))

    def merge(self, other: Statistics) -> Statistics:
        """Both together; associative and commutative but for ties."""
        rows = jnp.concatenate([self.rows, other.rows], axis=-2)
        priority = jnp.concatenate([self.priority, other.priority], axis=-1)
        priority, kept = jax.lax.top_k(priority, self.priority.shape[-1])
        rows = jnp.take_along_axis(rows, kept[..., None], axis=-2)
        return Statistics(self.moments + other.moments, rows, priority)

    @property
    def valid(self) -> Array:
        """bool [*batch, S]: which rows hold a token."""
        return self.priority > -jnp.inf


def _priority(new: Observation, key: PRNGKeyArray) -> Float[Array, "*batch S"]:
    """log(u) / w, w the tokens that a row stands for."""
    valid = new.valid[..., 0]
    represented = new.count[..., 0] / jnp.maximum(valid.sum(-1, keepdims=True), 1)
    u = jax.random.uniform(key, valid.shape, minval=jnp.finfo(jnp.float32).tiny)
    return jnp.where(valid, jnp.log(u) / jnp.maximum(represented, 1), -jnp.inf)
