"""The online operations of a quantized layer, y = Q(x Tᵀ) Q(T⁻ᵀ W), by the best code there is.

The layer is two steps, so that layers which read one array (query, key, value) can share the
first: `encode` transforms and quantizes the rows of x, `matmul` contracts them with a kernel.
`dispatch` picks the implementation when a program is traced.

Gradients with respect to x are straight-through: rounding counts as the identity. Implementations
other than the reference have none with respect to the kernel.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import dispatch
from wush_jax.ops.implementations.base import Implementation
from wush_jax.ops.implementations.table import IMPLEMENTATIONS, REFERENCE

__all__ = ["IMPLEMENTATIONS", "Activations", "encode", "linear", "matmul"]


class Activations(NamedTuple):
    """Rows ready for `matmul`.

    Attributes:
      encoded: what the implementation's product reads, [*batch, *tokens, ...].
      rows: their kind, `Implementation.rows`.
      source: x, for gradients, and for a layer whose implementation reads rows of another kind.
    """

    encoded: Any
    rows: str
    source: Float[Array, "*tokens K"]


def linear(
    x: Float[Array | np.ndarray, "*tokens K"],
    kernel: QuantizedKernel,
    *,
    implementation: str | None = None,
) -> Float[Array, "*tokens N"]:
    """A whole quantized layer, without bias, in x's dtype. Sums are float32.

    Args:
      x: [*batch, *tokens, K], batch axes as the kernel's.
      kernel: one layer's (not stacked).
      implementation: None for the best on this device, or a name in `IMPLEMENTATIONS`.

    Raises:
      ValueError: x has another number of features than the kernel, or an unknown implementation.
      NotImplementedError: the named implementation cannot run here; the message says why.
    """
    rows = encode(x, kernel, implementation=implementation)
    return matmul(rows, kernel, x.dtype, implementation=implementation)


def encode(
    x: Float[Array | np.ndarray, "*tokens K"],
    kernel: QuantizedKernel,
    *,
    implementation: str | None = None,
) -> Activations:
    """Q(x Tᵀ): transforms each block of features and quantizes each group.

    The transform multiplies in x's dtype (bfloat16) or float32, and accumulates in float32.
    NaN or Inf in a token reaches that token's groups and no other token's.

    Raises: as `linear`.
    """
    if x.shape[-1] != kernel.features:
        raise ValueError(
            f"x has {x.shape[-1]} features (shape {x.shape}); the kernel takes {kernel.features}"
        )
    x = jnp.asarray(x)
    chosen = _chosen(kernel, implementation, x)
    return Activations(chosen.encode(x, kernel), chosen.rows, x)


def matmul(
    activations: Activations,
    kernel: QuantizedKernel,
    dtype: DTypeLike,
    *,
    implementation: str | None = None,
) -> Float[Array, "*tokens N"]:
    """Contracts encoded rows with a kernel: float32 sums, scaled once at the end, then cast.

    Raises: as `linear`.
    """
    encoded, rows, source = activations
    chosen = _chosen(kernel, implementation, source)
    if rows != chosen.rows:  # shared with a layer that has another implementation
        encoded = chosen.encode(source, kernel)
    return chosen.matmul(encoded, source, kernel, jnp.dtype(dtype))


def _chosen(kernel: QuantizedKernel, implementation: str | None, x: Array) -> Implementation:
    chosen = dispatch.chosen(kernel, implementation, x.dtype)
    return chosen if x.size else REFERENCE  # of no tokens there is nothing to launch
