"""The families of transforms by name; all of them closed forms, batched over blocks, in float32.

`wush` has WUSH itself; here are the orthogonal and the diagonal ones, and `make`, which knows all.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, PRNGKeyArray

from wush_jax.transforms import hadamard as _hadamard
from wush_jax.transforms.blocks import Blocks, Scalar, Transform, damp, eye_like
from wush_jax.transforms.wush import wus, wush


def identity(sx: Blocks, sw: Blocks) -> Transform:
    """T = I."""
    eye = eye_like(sx)
    return Transform(eye, eye)


def random(sx: Blocks, sw: Blocks, key: PRNGKeyArray) -> Transform:
    """T uniform (Haar) over the orthogonal group, one draw a block."""
    q = jax.random.orthogonal(key, sx.shape[-1], sx.shape[:-2], dtype=jnp.float32)
    return Transform(q, q)


def hadamard(sx: Blocks, sw: Blocks) -> Transform:
    """T = H, the same for every block."""
    h = _hadamard_like(sx)
    return Transform(h, h)


def diagonal(sx: Blocks, sw: Blocks) -> Transform:
    """T = diag(d), d = (Sw_ii / Sx_ii)^¼: gives T x and T⁻ᵀ W the same scale, feature by feature.

    This is WUSH with H = I and the moments' diagonals in place of the moments.
    """
    gain = _diagonal_gain(sx, sw)
    eye = eye_like(sx)
    return Transform(gain[..., None] * eye, eye / gain[..., None])


def diagonal_hadamard(sx: Blocks, sw: Blocks) -> Transform:
    """T = H diag(d), d as in `diagonal`.

    For diagonal moments J = (Σ sqrt(Sx_ii Sw_ii))² / D, the least there is.
    """
    h = _hadamard_like(sx)
    gain = _diagonal_gain(sx, sw)
    return Transform(h * gain[..., None, :], h / gain[..., None, :])


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
    strength: Scalar = 1.0,
    damping: Scalar = 1e-2,
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


def _hadamard_like(a: Blocks) -> Blocks:
    return jnp.broadcast_to(jnp.asarray(_hadamard.matrix(a.shape[-1])), a.shape)


def _diagonal_gain(sx: Blocks, sw: Blocks) -> Float32[Array, "*C D"]:
    dx = jnp.diagonal(sx, axis1=-2, axis2=-1)
    dw = jnp.diagonal(sw, axis1=-2, axis2=-1)
    usable = (dx > 0) & (dw > 0)
    return jnp.where(usable, dw, 1) ** 0.25 / jnp.where(usable, dx, 1) ** 0.25
