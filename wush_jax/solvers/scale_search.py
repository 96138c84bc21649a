"""Scale candidates of a group of weights: the rule's own, and those around it.

A rule fixes a group's scale by its largest magnitude (or root mean square) alone. What the output
loses depends on all of the group and on the activations' moment, so the solvers try a few scales
more:

* E8M0 (MXFP4): one octave down, where the largest elements clip, and one up;
* E4M3 (NVFP4): the rule's scale times `_FACTORS`, rounded to E4M3;
* bfloat16 (INT4, INT8): the same, rounded to bfloat16.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Num

from wush_jax import formats
from wush_jax.formats import Format, scales
from wush_jax.solvers.objective import Objective
from wush_jax.solvers.rounded import Rounded
from wush_jax.statistics import moments

_OCTAVES = (0, -1, 1)
_FACTORS = (1.0, 0.7, 0.77, 0.84, 0.92, 1.08, 1.16)


def candidates(
    groups: Float32[Array, "*s G"], fmt: Format, global_scale: Float32[Array, ""], search: bool
) -> Num[Array, " R *s"]:
    """Stored scales, the rule's first; that alone unless ``search``."""
    rule = formats.quantize(groups, fmt, global_scale=global_scale).scales[..., 0]
    if not search:
        return rule[None]
    if fmt.name == "mxfp4":
        octaves = jnp.asarray(_OCTAVES, jnp.int32).reshape(-1, *[1] * rule.ndim)
        bytes_ = jnp.clip(rule.astype(jnp.int32)[None] + octaves, 0, 254)
        bytes_ = jnp.where(rule[None] == scales.E8M0_NAN, scales.E8M0_NAN, bytes_)
        return bytes_.astype(jnp.uint8)
    values = formats.scales_to_values(rule, fmt)[None]
    factors = jnp.asarray(_FACTORS, jnp.float32).reshape(-1, *[1] * rule.ndim)
    if fmt.name == "nvfp4":
        return scales.e4m3_from_float(values * factors)
    return (values * factors).astype(jnp.bfloat16)


def nearest(
    a: Float32[Array, "K N"], objective: Objective, fmt: Format, global_scale: Float32[Array, ""]
) -> Rounded:
    """Round to nearest with the best of the candidate scales of each group.

    The best is the least (q - a*)ᵀ Ĥ (q - a*) over the group's own features, all others left out:
    groups do not know of one another here.
    """
    features = len(a)
    hessian = moments.diagonal_blocks(objective.hessian, fmt.group_size, features)  # [K/G, G, G]
    groups, targets = (
        x.T.reshape(-1, features // fmt.group_size, fmt.group_size) for x in (a, objective.target)
    )
    stored = candidates(groups, fmt, global_scale, True)

    def values(scale: Array) -> tuple[Array, Array]:
        step = (formats.scales_to_values(scale, fmt) * global_scale)[..., None]
        return fmt.grid.round(jnp.where(step > 0, groups / jnp.where(step > 0, step, 1), 0)), step

    def loss(scale: Array) -> Array:
        rounded, step = values(scale)
        error = rounded * step - targets
        moved = jnp.einsum("ngi,gij->ngj", error, hessian, precision="highest")
        return jnp.sum(error * moved, axis=-1)

    best = jnp.argmin(jax.lax.map(loss, stored), axis=0).astype(jnp.int32)
    chosen = jnp.take_along_axis(stored, best[None], axis=0)[0]
    return Rounded(values(chosen)[0].reshape(a.T.shape), chosen)
