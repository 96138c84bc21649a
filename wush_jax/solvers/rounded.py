"""What solvers pass among themselves: grid values and group scales, before codes are packed."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Num

from wush_jax import formats
from wush_jax.formats import Format


class Rounded(NamedTuple):
    """Rounded weights.

    Attributes:
      values: float32 [N, K], on the format's grid.
      scales: [N, K/G], as stored.
    """

    values: Float32[Array, "N K"]
    scales: Num[Array, "N Kg"]

    def steps(self, fmt: Format, global_scale: Float32[Array, ""]) -> Float32[Array, "N K"]:
        """The group's scale, global scale included, of every value."""
        scale = formats.scales_to_values(self.scales, fmt) * global_scale
        return jnp.repeat(scale, fmt.group_size, axis=1)

    def weights(self, fmt: Format, global_scale: Float32[Array, ""]) -> Float32[Array, "K N"]:
        """Q."""
        return (self.values * self.steps(fmt, global_scale)).T

    def where(self, better: Bool[Array, " N"], other: Rounded) -> Rounded:
        """``self`` for the outputs [N] that are ``better``, else ``other``."""
        pick = better[:, None]
        return Rounded(
            jnp.where(pick, self.values, other.values), jnp.where(pick, self.scales, other.scales)
        )

    def codes(self, fmt: Format) -> Num[Array, "N Kb"]:
        """Codes as stored."""
        codes = fmt.grid.encode(self.values)
        return formats.pack(codes) if fmt.packed else codes
