"""What a solver minimises: the output error as a quadratic form in the rounded weights.

In the basis of a transform a layer computes x̂ᵀ Q with x̂ = Q(Tx) = Tx + δ where it ought to
compute (Tx)ᵀ A, A = T⁻ᵀ W. Rounding errors of different features are all but uncorrelated, and
their diagonals say it all, but for one case: a massive activation is nearly the same in every
token, all its features are rounded the same way every time, and δ follows it. So the few directions
V that hold most of Tx's power are followed exactly, and the rest ε is taken for uncorrelated noise:

    δ = B Vᵀ Tx + ε,  P = I + B Vᵀ,  n = E[ε²],  m = E[ε Tx]

With M = T E[x xᵀ] Tᵀ the mean squared error of all outputs, Σ E((x̂ᵀ q - (Tx)ᵀ a)²), is, but for a
constant, tr((Q - A*)ᵀ Ĥ (Q - A*)), where for ρ = 1

    Ĥ = P M Pᵀ + ρ diag(n + 2 m),    A* = Ĥ⁻¹ (P M + ρ diag(m)) A

M comes from every calibration token, and only B, n and m from the sample. n damps Ĥ just where,
and by as much as, the quantizer blurs a feature, and A* makes up for the systematic part P. But A*
also shrinks a little: the least squared error under noise is biased towards zero. One layer gains;
a model loses, for the noise of its layers averages out along the residual stream while their bias
adds up. So noise counts only for a share ρ of its square, `NOISE_SHARE`. Weight-only (or objective
"W") Ĥ = M and A* = A.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
from jaxtyping import Array, Float32, Integer

from wush_jax.transforms.blocks import damp, matmul

# Of language models' KL to the float one and of the layers' errors, 0.1 has the better of both: 1
# adds 5 % to the KL of a model of 0.9 million parameters, 0.1 nothing, at less error than either 1
# or "W".
NOISE_SHARE = 0.1
_DIRECTIONS = 4
_ITERATIONS = 8


class Noise(NamedTuple):
    """How rounding changes Tx, x̂ = (I + B Vᵀ) Tx + ε, per block of the moments.

    Attributes:
      directions: V, float32 [C, B, k], orthonormal: where Tx has most of its power.
      gain: B, float32 [C, B, k].
      power: n = E[ε²], float32 [C, B].
      overlap: m = E[ε Tx], float32 [C, B].
    """

    directions: Float32[Array, "C B k"]
    gain: Float32[Array, "C B k"]
    power: Float32[Array, "C B"]
    overlap: Float32[Array, "C B"]


class Objective(NamedTuple):
    """tr((Q - A*)ᵀ Ĥ (Q - A*)), blockwise if the moments are.

    Attributes:
      hessian: Ĥ, float32 [C, B, B].
      target: A*, float32 [K, N].
    """

    hessian: Float32[Array, "C B B"]
    target: Float32[Array, "K N"]


def rotated_moment(
    moment: Float32[Array, "C B B"], t: Float32[Array, "E D D"]
) -> Float32[Array, "C B B"]:
    """M = T S Tᵀ for moments in blocks of B, a multiple of D: float32 [C, B, B]."""
    count, size = moment.shape[:2]
    t = t.reshape(count, -1, *t.shape[1:])  # [C, B/D, D, D]
    half = jnp.einsum("cbij,cbjk->cbik", t, moment.reshape(*t.shape[:3], size), precision="highest")
    half = half.reshape(count, size, size).mT.reshape(*t.shape[:3], size)
    whole = jnp.einsum("cbij,cbjk->cbik", t, half, precision="highest").reshape(count, size, size)
    return (whole + whole.mT) / 2


def noise(
    rotated: Float32[Array, "S K"],
    rounded: Float32[Array, "S K"],
    tokens: Integer[Array, ""],
    block: int,
) -> Noise:
    """From sample tokens Tx (zero rows where there is none) and what they are rounded to."""
    count = jnp.maximum(tokens, 1).astype(jnp.float32)

    def of_block(x: Float32[Array, "S B"], error: Float32[Array, "S B"]) -> Noise:
        v = _leading(x, min(_DIRECTIONS, block))
        along = matmul(x, v)  # [S, k]
        power = matmul(along.T, along)
        ridge = jnp.trace(power) * 1e-6 + jnp.finfo(jnp.float32).tiny
        eye = jnp.eye(len(power), dtype=jnp.float32)
        factor = jax.scipy.linalg.cho_factor(power + ridge * eye, lower=True)
        gain = jax.scipy.linalg.cho_solve(factor, matmul(along.T, error)).T
        rest = error - matmul(along, gain.T)
        return Noise(v, gain, jnp.sum(rest**2, axis=0) / count, jnp.sum(rest * x, axis=0) / count)

    blocks = (x.reshape(len(x), -1, block).swapaxes(0, 1) for x in (rotated, rounded - rotated))
    return jax.vmap(of_block)(*blocks)


def _leading(x: Float32[Array, "S B"], count: int) -> Float32[Array, "B {count}"]:
    """The leading right singular vectors of x, all but: by subspace iteration."""
    start = jax.random.normal(jax.random.key(0), (x.shape[1], count), jnp.float32)

    def iterate(_: Array, v: Array) -> Array:
        return jnp.linalg.qr(matmul(x.T, matmul(x, v)))[0]

    return jax.lax.fori_loop(0, _ITERATIONS, iterate, jnp.linalg.qr(start)[0])


def objective(
    a: Float32[Array, "K N"],
    moment: Float32[Array, "C B B"],
    activations: Noise | None,
    damping: float,
    noise_share: float = NOISE_SHARE,
) -> Objective:
    """The objective for A, from M; ``activations=None`` is weight-only.

    Args:
      damping: share of M's mean diagonal added to it, A* left as it is.
      noise_share: ρ; 1 for the mean squared error itself.
    """
    count, size = moment.shape[:2]
    damped = damp(moment, damping)
    silent = jnp.trace(damped, axis1=-2, axis2=-1) <= 0  # no activation at all: any Ĥ will do
    damped = damped + _diagonal(jnp.broadcast_to(silent[:, None], (count, size)).astype(a.dtype))
    if activations is None:
        return Objective(damped, a)
    half = damped + matmul(activations.gain, matmul(activations.directions.mT, damped))  # P M
    hessian = half + matmul(matmul(half, activations.directions), activations.gain.mT)
    overlap = noise_share * activations.overlap
    extra = jnp.maximum(noise_share * activations.power + 2 * overlap, 0)
    hessian = (hessian + hessian.mT) / 2 + _diagonal(extra)
    blocks = a.reshape(count, size, -1)
    meant = matmul(half, blocks) + overlap[..., None] * blocks
    factor = jax.vmap(lambda h: jax.scipy.linalg.cho_factor(h, lower=True)[0])(hessian)
    solve = jax.vmap(lambda c, b: jax.scipy.linalg.cho_solve((c, True), b))
    return Objective(hessian, solve(factor, meant).reshape(a.shape))


def _diagonal(values: Float32[Array, "C B"]) -> Float32[Array, "C B B"]:
    return values[..., None] * jnp.eye(values.shape[-1], dtype=values.dtype)[None]


def losses(solved: Objective, q: Float32[Array, "K N"]) -> Float32[Array, " N"]:
    """(q - a*)ᵀ Ĥ (q - a*) of every output."""
    error = (q - solved.target).reshape(*solved.hessian.shape[:2], -1)
    return jnp.sum(error * matmul(solved.hessian, error), axis=(0, 1))
