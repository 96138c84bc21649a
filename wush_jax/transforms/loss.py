"""How good a transform is before anything is rounded: the predicted loss J, and cond(T).

References: arXiv 2512.00956, section 3 (J, and its minimum over all T).
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float32

from wush_jax.transforms.blocks import Blocks, Transform, matmul


def predicted_loss(transform: Transform, sx: Blocks, sw: Blocks) -> Float32[Array, "*C"]:
    """J(T) = Σᵢ [T Sx Tᵀ]ᵢᵢ [T⁻ᵀ Sw T⁻¹]ᵢᵢ per block (arXiv 2512.00956, eq. for the smooth loss).

    Ranks Hadamard-mixed transforms among themselves. Across families (identity, WUS) the codes'
    outliers decide, which J does not see: measure with the true quantizer there.
    """
    activations = _congruence_diagonal(transform.forward, sx)
    weights = _congruence_diagonal(transform.inverse_transpose, sw)
    return jnp.sum(activations * weights, axis=-1)


def condition_number(forward: Blocks) -> Float32[Array, "*C"]:
    """cond₂(T) per block, from T's own singular values."""
    s = jnp.linalg.svd(forward, compute_uv=False)
    return s[..., 0] / s[..., -1]


def _congruence_diagonal(a: Blocks, s: Blocks) -> Float32[Array, "*C D"]:
    """diag(A S Aᵀ)."""
    return jnp.sum(matmul(a, s) * a, axis=-1)
