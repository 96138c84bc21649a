"""Coordinate descent: rounds each weight once more, given how all others were rounded.

GPTQ rounds a feature before it knows what the later ones will be. Afterwards, with G = Ĥ (Q - A*)
the gradient, the best value of q_i for all others fixed is the grid's nearest to q_i - G_i / Ĥ_ii.
No step makes tr((Q - A*)ᵀ Ĥ (Q - A*)) larger, and scales stay as they are. Sums are float32.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from wush_jax.formats import Format
from wush_jax.solvers.gptq import panel_size
from wush_jax.solvers.rounded import Rounded
from wush_jax.transforms.blocks import matmul


def refine(
    rounded: Rounded,
    target: Float32[Array, "K N"],
    hessian: Float32[Array, "K K"],
    fmt: Format,
    global_scale: Float32[Array, ""],
    *,
    passes: int,
) -> Rounded:
    """``passes`` rounds of coordinate descent over all features, in panels of whole groups."""
    scale = rounded.steps(fmt, global_scale).T
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
    panel = panel_size(len(hessian), fmt)
    diagonal = jnp.diagonal(hessian)

    def descend_panel(state: tuple[Array, Array], start: Array):
        values, gradient = state
        column = jax.lax.dynamic_slice_in_dim(hessian, start, panel, axis=1)  # [K, P]
        corner, curvature, steps, per_step, old, slope = (
            jax.lax.dynamic_slice_in_dim(x, start, panel)
            for x in (column, diagonal, scale, inverse, values, gradient)
        )

        def feature(i: Array, state: tuple[Array, Array]):
            here, slope = state
            best = here[i] * steps[i] - slope[i] / curvature[i]
            value = fmt.grid.round(best * per_step[i])
            slope = slope + corner[:, i, None] * ((value - here[i]) * steps[i])[None]
            return here.at[i].set(value), slope

        new, _ = jax.lax.fori_loop(0, panel, feature, (old, slope))
        gradient = gradient + matmul(column, (new - old) * steps)
        return (jax.lax.dynamic_update_slice_in_dim(values, new, start, 0), gradient), None

    def descend(state: tuple[Array, Array], _: None):
        return jax.lax.scan(descend_panel, state, starts)[0], None

    starts = jnp.arange(0, len(hessian), panel, dtype=jnp.int32)
    values = rounded.values.T
    gradient = matmul(hessian, values * scale - target)
    (values, _), _ = jax.lax.scan(descend, (values, gradient), None, length=passes)
    return rounded._replace(values=values.T)
