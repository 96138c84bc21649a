"""WUSH and WUS in closed form (arXiv 2512.00956, section 3).

Sx = E[x xᵀ] and Sw = W Wᵀ / N are the blocks' second moments, [C, D, D]:

    Lw Lwᵀ = Sw,  U Λ Uᵀ = Lwᵀ Sx Lw,  S = Λ^½
    T   = H S^-½ Uᵀ Lwᵀ        T⁻ᵀ = H S^½ Uᵀ Lw⁻¹

The eigenproblem squares the condition number, and in float32 that loses S's lower end. With
Sx = Lx Lxᵀ the same U and S come from one singular value decomposition, which also gives T⁻ᵀ
without any inverse ("square-root balancing"):

    P S Uᵀ = Lxᵀ Lw,   T⁻ᵀ = H S^-½ Pᵀ Lxᵀ

All of it is float32, batched over blocks, and needs no float64 anywhere.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32

from wush_jax.transforms import hadamard as _hadamard
from wush_jax.transforms.blocks import Blocks, Scalar, Transform, damp, eye_like, matmul, trace


def wush(sx: Blocks, sw: Blocks, *, strength: Scalar = 1.0) -> Transform:
    """The WUSH transform, T = H Λ^(-strength/4) Uᵀ Lwᵀ (arXiv 2512.00956, section 3).

    With strength 1 it balances, T Sx Tᵀ = T⁻ᵀ Sw T⁻¹ = H S Hᵀ, and reaches the minimum of
    `predicted_loss`, (tr S)² / D; TᵀT is the geometric mean Sw # Sx⁻¹. Smaller strengths temper
    the spread of T. U is fixed: singular values fall, and each column's largest entry is positive.

    Args:
      sx, sw: float32 [*C, D, D], damped (see `damp`) and hence positive definite, or zero: a
        block with no activation or no weight gets T = H.
      strength: exponent of Λ, 0 to 1.
    """
    h = jnp.asarray(_hadamard.matrix(sx.shape[-1]))
    return _wus(sx, sw, strength, jnp.broadcast_to(h, sx.shape), post=h)


def wus(sx: Blocks, sw: Blocks, *, strength: Scalar = 1.0) -> Transform:
    """WUSH without the Hadamard matrix: T = Λ^(-strength/4) Uᵀ Lwᵀ."""
    return _wus(sx, sw, strength, eye_like(sx))


def _wus(
    sx: Blocks,
    sw: Blocks,
    strength: Scalar,
    fallback: Blocks,
    post: Float32[Array, "D D"] | None = None,
) -> Transform:
    zero = (trace(sx) <= 0) | (trace(sw) <= 0)
    eye = eye_like(sx)
    lx, lw = _cholesky(jnp.where(zero, eye, sx)), _cholesky(jnp.where(zero, eye, sw))
    p, s, ut = jnp.linalg.svd(matmul(lx.mT, lw))
    flip = _column_sign(ut.mT)
    ut, p = ut * flip[..., :, None], p * flip[..., None, :]
    # A moment of rank < D that was not damped has singular values at rounding level: floor them.
    s = jnp.maximum(s, s[..., :1] * jnp.finfo(jnp.float32).eps)[..., :, None]
    forward = s ** (-strength / 2) * matmul(ut, lw.mT)
    inverse_transpose = s ** (strength / 2 - 1) * matmul(p.mT, lx.mT)
    if post is not None:
        forward, inverse_transpose = matmul(post, forward), matmul(post, inverse_transpose)
    return Transform(
        jnp.where(zero, fallback, forward), jnp.where(zero, fallback, inverse_transpose)
    )


def _cholesky(s: Blocks) -> Blocks:
    """Lower factor; a matrix that float32 finds indefinite is damped by its own rounding error."""
    floor = 4 * s.shape[-1] * float(jnp.finfo(jnp.float32).eps)
    # Mapped, not batched: XLA compiles the small Cholesky much faster than one over all blocks.
    factorise = functools.partial(jax.lax.linalg.cholesky, symmetrize_input=False)
    factor, damped = jax.lax.map(factorise, jnp.stack([s, damp(s, floor)]))
    failed = jnp.isnan(factor).any((-2, -1), keepdims=True)
    return jnp.where(failed, damped, factor)


def _column_sign(u: Blocks) -> Float32[Array, "*C D"]:
    """±1 per column: the sign that makes its entry of largest magnitude positive."""
    row = jnp.argmax(jnp.abs(u), axis=-2, keepdims=True).astype(jnp.int32)
    largest = jnp.take_along_axis(u, row, axis=-2)[..., 0, :]
    return jnp.where(largest < 0, jnp.float32(-1), jnp.float32(1))
