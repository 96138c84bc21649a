"""Transforms of blocks of features: the pair (T, T⁻ᵀ), and what all families need.

A transform is a pair, per block of D in-features: T acts on activations online (x_b -> T x_b),
T⁻ᵀ acts on weights offline (W_b -> T⁻ᵀ W_b), so that (x Tᵀ)(T⁻ᵀ W) = x W.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

Blocks: TypeAlias = Float32[Array, "*C D D"]
Scalar: TypeAlias = float | Float32[Array, ""]


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


def damp(moment: Blocks, damping: Scalar) -> Blocks:
    """S + damping · tr(S)/D · I, symmetrised."""
    size = moment.shape[-1]
    return (moment + moment.mT) / 2 + damping * (trace(moment) / size) * eye_like(moment)


def pad_features(x: Float[Array, "*tokens K"], unit: int) -> Float[Array, "*tokens Kp"]:
    """x with zero features appended, up to a multiple of ``unit``."""
    missing = -x.shape[-1] % unit
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)]) if missing else x


def matmul(a: Float32[Array, "*a I J"], b: Float32[Array, "*b J L"]) -> Float32[Array, "*c I L"]:
    """a b, in full float32 on every backend; leading axes as of `jnp.matmul`."""
    return jnp.matmul(a, b, precision="highest")


def eye_like(a: Blocks) -> Blocks:
    """I for every block."""
    return jnp.broadcast_to(jnp.eye(a.shape[-1], dtype=jnp.float32), a.shape)


def trace(a: Blocks) -> Float32[Array, "*C 1 1"]:
    """tr(A) of every block."""
    return jnp.trace(a, axis1=-2, axis2=-1)[..., None, None]
