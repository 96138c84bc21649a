"""Closed-form blockwise transforms that make activations and weights easy to quantize together.

A transform is a pair, per block of D in-features: T acts on activations online (x_b -> T x_b),
T⁻ᵀ acts on weights offline (W_b -> T⁻ᵀ W_b), so that (x Tᵀ)(T⁻ᵀ W) = x W. Sx = E[x xᵀ] and
Sw = W Wᵀ / N are the blocks' second moments, [C, D, D]. From arXiv 2512.00956, section 3:

    Lw Lwᵀ = Sw,  U Λ Uᵀ = Lwᵀ Sx Lw,  S = Λ^½
    T   = H S^-½ Uᵀ Lwᵀ        T⁻ᵀ = H S^½ Uᵀ Lw⁻¹

The eigenproblem squares the condition number, and in float32 that loses S's lower end. With
Sx = Lx Lxᵀ the same U and S come from one singular value decomposition, which also gives T⁻ᵀ
without any inverse ("square-root balancing"):

    P S Uᵀ = Lxᵀ Lw,   T⁻ᵀ = H S^-½ Pᵀ Lxᵀ

All of it is float32, batched over blocks, and needs no float64 anywhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from wush_jax.transforms import hadamard as _hadamard

Blocks: TypeAlias = Float[Array, "*C D D"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Transform:
    """T and T⁻ᵀ of every block.

    Attributes:
      forward: T, float32 [*C, D, D], for activations: y = T x.
      inverse_transpose: T⁻ᵀ, float32 [*C, D, D], for weights: A = T⁻ᵀ W.
    """

    forward: Blocks
    inverse_transpose: Blocks


def damp(moment: Blocks, damping: float) -> Blocks:
    """S + damping · tr(S)/D · I, symmetrised."""
    size = moment.shape[-1]
    mean = jnp.trace(moment, axis1=-2, axis2=-1)[..., None, None] / size
    return (moment + moment.mT) / 2 + damping * mean * jnp.eye(size, dtype=moment.dtype)


def identity(sx: Blocks, sw: Blocks) -> Transform:
    """T = I."""
    eye = jnp.broadcast_to(jnp.eye(sx.shape[-1], dtype=jnp.float32), sx.shape)
    return Transform(eye, eye)


def random(sx: Blocks, sw: Blocks, key: PRNGKeyArray) -> Transform:
    """T uniform (Haar) over the orthogonal group, one draw a block."""
    q = jax.random.orthogonal(key, sx.shape[-1], sx.shape[:-2], dtype=jnp.float32)
    return Transform(q, q)


def hadamard(sx: Blocks, sw: Blocks) -> Transform:
    """T = H, the same for every block."""
    h = jnp.broadcast_to(jnp.asarray(_hadamard.matrix(sx.shape[-1])), sx.shape)
    return Transform(h, h)


def diagonal(sx: Blocks, sw: Blocks) -> Transform:
    """T = diag(d), d = (Sw_ii / Sx_ii)^¼: gives T x and T⁻ᵀ W the same scale, feature by feature.

    This is WUSH with H = I and the moments' diagonals in place of the moments.
    """
    gain = _diagonal_gain(sx, sw)
    eye = jnp.eye(sx.shape[-1], dtype=jnp.float32)
    return Transform(gain[..., None] * eye, eye / gain[..., None])


def diagonal_hadamard(sx: Blocks, sw: Blocks) -> Transform:
    """T = H diag(d), d as in `diagonal`.

    For diagonal moments J = (Σ sqrt(Sx_ii Sw_ii))² / D, the least there is.
    """
    h = jnp.asarray(_hadamard.matrix(sx.shape[-1]))
    gain = _diagonal_gain(sx, sw)
    return Transform(h * gain[..., None, :], h / gain[..., None, :])


def wus(sx: Blocks, sw: Blocks, *, strength: float = 1.0) -> Transform:
    """WUSH without the Hadamard matrix: T = Λ^(-strength/4) Uᵀ Lwᵀ."""
    return _wus(sx, sw, strength, _eye_like(sx))


def wush(sx: Blocks, sw: Blocks, *, strength: float = 1.0) -> Transform:
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


def _wus(
    sx: Blocks, sw: Blocks, strength: float, fallback: Blocks, post: Array | None = None
) -> Transform:
    zero = (_trace(sx) <= 0) | (_trace(sw) <= 0)
    eye = jnp.eye(sx.shape[-1], dtype=jnp.float32)
    lx, lw = _cholesky(jnp.where(zero, eye, sx)), _cholesky(jnp.where(zero, eye, sw))
    p, s, ut = jnp.linalg.svd(_matmul(lx.mT, lw))
    flip = _column_sign(ut.mT)
    ut, p = ut * flip[..., :, None], p * flip[..., None, :]
    # A moment of rank < D that was not damped has singular values at rounding level: floor them.
    s = jnp.maximum(s, s[..., :1] * jnp.finfo(jnp.float32).eps)[..., :, None]
    forward = s ** (-strength / 2) * _matmul(ut, lw.mT)
    inverse_transpose = s ** (strength / 2 - 1) * _matmul(p.mT, lx.mT)
    if post is not None:
        forward, inverse_transpose = _matmul(post, forward), _matmul(post, inverse_transpose)
    return Transform(
        jnp.where(zero, fallback, forward), jnp.where(zero, fallback, inverse_transpose)
    )


def predicted_loss(transform: Transform, sx: Blocks, sw: Blocks) -> Float[Array, "*C"]:
    """J(T) = Σᵢ [T Sx Tᵀ]ᵢᵢ [T⁻ᵀ Sw T⁻¹]ᵢᵢ per block (arXiv 2512.00956, eq. for the smooth loss).

    Ranks Hadamard-mixed transforms among themselves. Across families (identity, WUS) the codes'
    outliers decide, which J does not see: measure with the true quantizer there.
    """
    activations = _congruence_diagonal(transform.forward, sx)
    weights = _congruence_diagonal(transform.inverse_transpose, sw)
    return jnp.sum(activations * weights, axis=-1)


def condition_number(forward: Blocks) -> Float[Array, "*C"]:
    """cond₂(T) per block, from T's own singular values."""
    s = jnp.linalg.svd(forward, compute_uv=False)
    return s[..., 0] / s[..., -1]


_FAMILIES: dict[str, Callable[..., Transform]] = {
    "identity": identity,
    "random": random,
    "hadamard": hadamard,
    "diagonal": diagonal,
    "diagonal_hadamard": diagonal_hadamard,
    "wus": wus,
    "wush": wush,
}
NAMES = tuple(_FAMILIES)


def make(
    name: str,
    sx: Blocks,
    sw: Blocks,
    *,
    strength: float = 1.0,
    damping: float = 1e-2,
    key: PRNGKeyArray | None = None,
) -> Transform:
    """The transform called ``name`` for undamped moments ``sx``, ``sw`` [*C, D, D].

    Raises:
      ValueError: the name is unknown, D is not a power of two, or "random" came without a key.
    """
    if name not in _FAMILIES:
        raise ValueError(f"unknown transform {name!r}; there are {', '.join(NAMES)}")
    _hadamard.signs(sx.shape[-1])  # refuses a D that is not a power of two
    sx, sw = damp(sx, damping), damp(sw, damping)
    if name == "random":
        if key is None:
            raise ValueError("transform 'random' draws from a jax.random.key: give key=")
        return random(sx, sw, key)
    if name in ("wus", "wush"):
        return _FAMILIES[name](sx, sw, strength=strength)
    return _FAMILIES[name](sx, sw)


def _cholesky(s: Blocks) -> Blocks:
    """Lower factor; a matrix that float32 finds indefinite is damped by its own rounding error."""
    floor = 4 * s.shape[-1] * float(jnp.finfo(jnp.float32).eps)
    # Mapped, not batched: XLA compiles the small Cholesky much faster than one over all blocks.
    factorise = functools.partial(jax.lax.linalg.cholesky, symmetrize_input=False)
    factor, damped = jax.lax.map(factorise, jnp.stack([s, damp(s, floor)]))
    failed = jnp.isnan(factor).any((-2, -1), keepdims=True)
    return jnp.where(failed, damped, factor)


def _diagonal_gain(sx: Blocks, sw: Blocks) -> Float[Array, "*C D"]:
    dx = jnp.diagonal(sx, axis1=-2, axis2=-1)
    dw = jnp.diagonal(sw, axis1=-2, axis2=-1)
    usable = (dx > 0) & (dw > 0)
    return jnp.where(usable, dw, 1) ** 0.25 / jnp.where(usable, dx, 1) ** 0.25


def _column_sign(u: Blocks) -> Float[Array, "*C D"]:
    """±1 per column: the sign that makes its entry of largest magnitude positive."""
    row = jnp.argmax(jnp.abs(u), axis=-2, keepdims=True)
    return jnp.where(jnp.take_along_axis(u, row, axis=-2)[..., 0, :] < 0, -1.0, 1.0)


def _congruence_diagonal(a: Blocks, s: Blocks) -> Float[Array, "*C D"]:
    """diag(A S Aᵀ)."""
    return jnp.sum(_matmul(a, s) * a, axis=-1)


def _matmul(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision="highest")


def _trace(a: Blocks) -> Array:
    return jnp.trace(a, axis1=-2, axis2=-1)[..., None, None]


def _eye_like(a: Blocks) -> Blocks:
    return jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=jnp.float32), a.shape)
