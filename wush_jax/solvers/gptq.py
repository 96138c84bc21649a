"""GPTQ: each rounding error is made up for by the features that are still to be rounded.

With Ĥ = L⁻ᵀL⁻¹ the second moment of what enters the product (`solvers.objective`), in the basis of
the transform, features are rounded one after another, and what one loses moves the later ones:

    e_i = (a_i - q_i) / L_ii,    A_j -= L_ji e_i  for j > i

(arXiv 2210.17323). That is the greedy minimiser of tr((A - Q)ᵀ Ĥ (A - Q)), which is Σ e_i² in the
end. As T acts blockwise, sweeping the transformed features with the transformed Ĥ is the sweep over
blocks of arXiv 2512.00956 for a T that is fixed beforehand, whatever D is.

Three choices are ours. A group's scale is taken when the sweep reaches it, from what is left to be
quantized then. A scale search runs the group once for each candidate and keeps, output by output,
the least Σ e_i²: its true share of the objective. Groups that carry most are rounded first.

The sweep is a scan over panels of groups around a scan over groups around a loop over features: it
compiles once whatever K is, and its work is in two matrix products, a group's and a panel's. Sums
are float32.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, Float32, Int32, Num

from wush_jax import formats
from wush_jax.formats import Format
from wush_jax.solvers import scale_search
from wush_jax.solvers.rounded import Rounded
from wush_jax.transforms.blocks import damp, matmul

_PANEL = 128  # features after which the rest of A is brought up to date
_LEAST_DAMPING = 1e-3  # of an Ĥ that float32 finds indefinite


def gptq(
    a: Float32[Array, "K N"],
    hessian: Float32[Array, "K K"],
    fmt: Format,
    global_scale: Float32[Array, ""],
    *,
    search: bool,
) -> Rounded:
    """Grid values and group scales of A = T⁻ᵀ W that make tr((A - Q)ᵀ Ĥ (A - Q)) small.

    Args:
      a: float32 [K, N]; K a multiple of the group size.
      hessian: Ĥ, positive definite; float32 rounding that makes it indefinite is damped away.
      global_scale: [], the weights' multiplier.
      search: try several scales for each group.
    """
    order = _order(jnp.diagonal(hessian), fmt.group_size)
    lower = inverse_factor(hessian[order][:, order])
    values, stored = _sweep(a[order], lower, fmt, global_scale, search)
    back = jnp.argsort(order).astype(jnp.int32)
    groups = back[:: fmt.group_size] // fmt.group_size
    return Rounded(values[:, back], stored[:, groups])


def panel_size(features: int, fmt: Format) -> int:
    """Whole groups, a divisor of K, at most `_PANEL`."""
    return next(p for p in (_PANEL, 64, 32, 16) if p % fmt.group_size == 0 and features % p == 0)


def _order(diagonal: Float32[Array, " K"], size: int) -> Int32[Array, " K"]:
    """Features in the order of the sweep: groups by their share of the diagonal, largest first."""
    groups = jnp.argsort(-diagonal.reshape(-1, size).sum(-1)).astype(jnp.int32)
    return (groups[:, None] * size + jnp.arange(size, dtype=jnp.int32)[None]).reshape(-1)


def inverse_factor(h: Float32[Array, "K K"]) -> Float32[Array, "K K"]:
    """Lower triangular L with L Lᵀ = H⁻¹, without forming H⁻¹.

    H = U Uᵀ with U upper triangular is the Cholesky factor of H read backwards; L = U⁻ᵀ.
    """
    factor = jnp.linalg.cholesky(h[::-1, ::-1])
    factor = jax.lax.cond(
        jnp.isnan(factor).any(),
        lambda: jnp.linalg.cholesky(damp(h, _LEAST_DAMPING)[::-1, ::-1]),
        lambda: factor,
    )
    upper = factor[::-1, ::-1]
    eye = jnp.eye(len(h), dtype=h.dtype)
    return jax.scipy.linalg.solve_triangular(upper, eye, lower=False).T


def _sweep(
    a: Float32[Array, "K N"],
    lower: Float32[Array, "K K"],
    fmt: Format,
    g: Float32[Array, ""],
    search: bool,
) -> tuple[Float32[Array, "N K"], Num[Array, "N Kg"]]:
    features = len(a)
    panel = panel_size(features, fmt)
    columns = jnp.moveaxis(lower.reshape(features, -1, panel), 1, 0)  # [K/P, K, P]
    starts = jnp.arange(0, features, panel, dtype=jnp.int32)

    def sweep_panel(a: Array, step: tuple[Array, Array]):
        column, start = step
        here = jax.lax.dynamic_slice_in_dim(a, start, panel)
        corner = jax.lax.dynamic_slice_in_dim(column, start, panel)
        values, stored, errors = _sweep_groups(here, corner, fmt, g, search)
        later = jnp.arange(features, dtype=jnp.int32)[:, None] >= start + panel
        return a - matmul(jnp.where(later, column, 0), errors), (values, stored)

    _, (values, stored) = jax.lax.scan(sweep_panel, a, (columns, starts))
    return _join(values), _join(stored)


def _sweep_groups(
    a: Float32[Array, "P N"],
    lower: Float32[Array, "P P"],
    fmt: Format,
    g: Float32[Array, ""],
    search: bool,
) -> tuple[Float32[Array, "N P"], Num[Array, "N Pg"], Float32[Array, "P N"]]:
    size = fmt.group_size
    columns = jnp.moveaxis(lower.reshape(len(a), -1, size), 1, 0)  # [P/G, P, G]
    starts = jnp.arange(0, len(a), size, dtype=jnp.int32)

    def sweep_group(a: Array, step: tuple[Array, Array]):
        column, start = step
        here = jax.lax.dynamic_slice_in_dim(a, start, size)
        corner = jax.lax.dynamic_slice_in_dim(column, start, size)
        candidates = scale_search.candidates(here.T, fmt, g, search)  # [R, N]
        multipliers = formats.scales_to_values(candidates, fmt) * g
        values, errors = jax.vmap(functools.partial(_sweep_features, here, corner, fmt))(
            multipliers
        )
        best = jnp.argmin(jnp.sum(errors**2, axis=1), axis=0).astype(jnp.int32)  # [N]
        values, errors = (_pick(x, best) for x in (values, errors))
        later = jnp.arange(len(a), dtype=jnp.int32)[:, None] >= start + size
        a = a - matmul(jnp.where(later, column, 0), errors)
        return a, (values.T, _pick(candidates, best)[:, None], errors)

    _, (values, stored, errors) = jax.lax.scan(sweep_group, a, (columns, starts))
    return _join(values), _join(stored), errors.reshape(a.shape)


def _sweep_features(
    a: Float32[Array, "G N"], lower: Float32[Array, "G G"], fmt: Format, scale: Float32[Array, " N"]
) -> tuple[Float32[Array, "G N"], Float32[Array, "G N"]]:
    """Grid values and scaled errors e of one group, its scales given."""
    inverse = jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)

    def feature(i: Array, state: tuple[Array, Array, Array]):
        a, values, errors = state
        value = fmt.grid.round(a[i] * inverse)
        error = (a[i] - value * scale) / lower[i, i]
        return a - lower[:, i, None] * error[None], values.at[i].set(value), errors.at[i].set(error)

    zeros = jnp.zeros_like(a)
    _, values, errors = jax.lax.fori_loop(0, len(a), feature, (a, zeros, zeros))
    return values, errors


def _pick(x: Num[Array, "R *s N"], best: Int32[Array, " N"]) -> Num[Array, "*s N"]:
    index = jnp.broadcast_to(best, (1, *x.shape[1:]))
    return jnp.take_along_axis(x, index, axis=0)[0]


def _join(stacked: Num[Array, "C N D"]) -> Num[Array, "N C*D"]:
    return jnp.moveaxis(stacked, 0, 1).reshape(stacked.shape[1], -1)
