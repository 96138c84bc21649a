"""GPTQ: Q(T⁻ᵀ W), each rounding error made up for by the features that are still to be rounded.

With H = E[x xᵀ] damped and H⁻¹ = L Lᵀ (L lower triangular), rounding W block by block and moving

    W_j += L_ji L_ii⁻¹ (Tᵀ Q_i - W_i)      for all later blocks j > i

is the greedy minimiser of tr((W - TᵀQ)ᵀ H (W - TᵀQ)) (arXiv 2210.17323, in blocks). Within a block the
D rows of A = T⁻ᵀ W_i are rounded one by one in the same way, with H⁻¹ replaced by the block's own
T⁻ᵀ L_ii L_iiᵀ T⁻¹. Group scales come from A before its first row is rounded.

One sweep is a `lax.scan` over blocks around a loop over rows, so it compiles once whatever K is; the
work is in the trailing updates, which are matrix products. Sums are float32.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, Float, Num

from wush_jax import formats
from wush_jax.config import LayerConfig
from wush_jax.formats import Format
from wush_jax.solvers.rtn import Solution, rtn
from wush_jax.transforms import Blocks, damp


def gptq(
    kernel: Float[Array, "K N"],
    forward: Blocks,
    hessian: Float[Array, "K K"],
    config: LayerConfig,
) -> Solution:
    """Quantizes a kernel in the basis of a transform, output by output no worse than `rtn`.

    Args:
      kernel: [K, N]; K a multiple of D and of the group size.
      forward: T, float32 [C, D, D].
      hessian: E[x xᵀ], undamped.
      config: number format, transform name, damping.

    Raises:
      ValueError: D is not a multiple of the group size.
    """
    if config.block % config.format.group_size:
        raise ValueError(
            f"GPTQ takes transform blocks of whole groups: D={config.block} is not a multiple of "
            f"{config.format} groups of {config.format.group_size}"
        )
    kernel = kernel.astype(jnp.float32)
    plain = rtn(kernel, forward, config)
    t = _stored(forward, plain)
    h = damp(hessian.astype(jnp.float32), config.damping)
    codes, scales = _sweep(kernel, t, _inverse_factor(h), config.format)
    swept = plain._replace(codes=codes, scales=scales)
    return _better(kernel, t, h, plain, swept, config.format)


def _stored(forward: Blocks, solution: Solution) -> Blocks:
    """T as the layer will apply it."""
    return forward if solution.transform is None else solution.transform.astype(jnp.float32)


def _inverse_factor(h: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Lower triangular L with L Lᵀ = H⁻¹, without forming H⁻¹.

    H = U Uᵀ with U upper triangular is the Cholesky factor of H read backwards; L = U⁻ᵀ.
    """
    upper = jnp.linalg.cholesky(h[::-1, ::-1])[::-1, ::-1]
    eye = jnp.eye(len(h), dtype=h.dtype)
    return jax.scipy.linalg.solve_triangular(upper, eye, lower=False).T


class _Block(NamedTuple):
    """What a step of the sweep needs of block i.

    Attributes:
      t, inverse: T and T⁻ᵀ.
      corner: L_ii.
      panel: L_ji for all j, [K, D], zeros for j <= i.
      factor: lower triangular, factor factorᵀ = T⁻ᵀ L_ii L_iiᵀ T⁻¹.
      first: first feature.
    """

    t: Float[Array, "D D"]
    inverse: Float[Array, "D D"]
    corner: Float[Array, "D D"]
    panel: Float[Array, "K D"]
    factor: Float[Array, "D D"]
    first: Array


def _sweep(
    kernel: Float[Array, "K N"], t: Blocks, lower: Float[Array, "K K"], fmt: Format
) -> tuple[Num[Array, "N Kp"], Num[Array, "N Kg"]]:
    count, size = t.shape[:2]
    eye = jnp.broadcast_to(jnp.eye(size, dtype=t.dtype), t.shape)
    inverse = jax.scipy.linalg.lu_solve(jax.scipy.linalg.lu_factor(t.mT), eye)
    panels = jnp.moveaxis(lower.reshape(-1, count, size), 1, 0)  # [C, K, D]
    first = jnp.arange(count) * size
    corners = jax.vmap(lambda p, k: jax.lax.dynamic_slice_in_dim(p, k, size))(panels, first)
    later = jnp.arange(len(lower))[:, None] >= first[:, None, None] + size
    # a QR decomposition, as the product T⁻ᵀ L_ii L_iiᵀ T⁻¹ would square the condition number
    r = jnp.linalg.qr(_matmul(inverse, corners).mT, mode="r")
    factors = (r * jnp.sign(jnp.diagonal(r, axis1=-2, axis2=-1))[..., None]).mT
    blocks = _Block(t, inverse, corners, jnp.where(later, panels, 0), factors, first)

    def step(w: Float[Array, "K N"], block: _Block):
        here = jax.lax.dynamic_slice_in_dim(w, block.first, size)
        a = _matmul(block.inverse, here)
        a = a + _matmul(block.inverse, here - _matmul(block.t.T, a))  # one refinement
        rounded, codes, scales = _round_block(a, block.factor, fmt)
        error = _matmul(block.t.T, rounded) - here
        solved = jax.scipy.linalg.solve_triangular(block.corner, error, lower=True)
        return w + _matmul(block.panel, solved), (codes, scales)

    _, (codes, scales) = jax.lax.scan(step, kernel, blocks)
    codes = _join(codes)
    return (formats.pack(codes) if fmt.packed else codes), _join(scales)


def _join(stacked: Num[Array, "C N D"]) -> Num[Array, "N K"]:
    return jnp.moveaxis(stacked, 0, 1).reshape(stacked.shape[1], -1)


def _round_block(
    a: Float[Array, "D N"], factor: Float[Array, "D D"], fmt: Format
) -> tuple[Float[Array, "D N"], Num[Array, "N D"], Num[Array, "N Dg"]]:
    """Rounded values, codes (not packed) and scales of one block's rows, in turn."""
    q = formats.quantize(a.T, fmt)
    step = formats.scales_to_values(q.scales, fmt) * q.global_scale  # [N, groups]

    def row(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        a, values = state
        scale = step[:, i // fmt.group_size]
        v = fmt.grid.round(jnp.where(scale > 0, a[i] / jnp.where(scale > 0, scale, 1), 0))
        error = (a[i] - v * scale) / factor[i, i]
        return a - factor[:, i, None] * error, values.at[i].set(v)

    rounded, values = jax.lax.fori_loop(0, len(a), row, (a, jnp.zeros_like(a)))
    return rounded, fmt.grid.encode(values.T), q.scales


def _better(
    kernel: Array, t: Blocks, h: Array, first: Solution, second: Solution, fmt: Format
) -> Solution:
    """Of every output the solution with the smaller (w - ŵ)ᵀ H (w - ŵ)."""

    def objective(solution: Solution) -> Float[Array, " N"]:
        q = formats.Quantized(solution.codes, solution.scales, solution.global_scale, fmt)
        blocks = formats.dequantize(q).T.reshape(*t.shape[:2], -1)
        error = _matmul(t.mT, blocks).reshape(kernel.shape) - kernel
        return jnp.sum(error * _matmul(h, error), axis=0)

    better = (objective(second) < objective(first))[:, None]
    return first._replace(
        codes=jnp.where(better, second.codes, first.codes),
        scales=jnp.where(better, second.scales, first.scales),
    )


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")
