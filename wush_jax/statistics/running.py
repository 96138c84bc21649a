"""The running state of calibration: moments so far, and a uniform sample of the tokens so far.

The sample is drawn in one pass: each batch offers some of its tokens, and each offered token
competes with the weight of the tokens it stands for (Efraimidis & Spirakis 2006). That is uniform
for batches of one size, and close to it otherwise.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, PRNGKeyArray

from wush_jax.statistics.moments import Moments
from wush_jax.statistics.observation import Observation, priority


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
    priority: Float32[Array, "*batch S"]

    @classmethod
    def start(cls, first: Observation, key: PRNGKeyArray) -> Statistics:
        moments = Moments(first.total, first.count[..., 0, 0])
        return cls(moments, first.rows, priority(first, key))

    def merge(self, other: Statistics) -> Statistics:
        """Both together; associative and commutative but for ties."""
        rows = jnp.concatenate([self.rows, other.rows], axis=-2)
        both = jnp.concatenate([self.priority, other.priority], axis=-1)
        highest, kept = jax.lax.top_k(both, self.priority.shape[-1])
        rows = jnp.take_along_axis(rows, kept[..., None], axis=-2)
        return Statistics(self.moments + other.moments, rows, highest)

    @property
    def valid(self) -> Bool[Array, "*batch S"]:
        """Which rows hold a token."""
        return self.priority > -jnp.inf
