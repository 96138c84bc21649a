"""The online operations of a quantized layer, y = Q(x Tᵀ) Q(T⁻ᵀ W), by the best code there is.

The layer is two steps, so that layers which read one array (query, key, value) can share the
first: `encode` transforms and quantizes the rows of x, `matmul` contracts them with a kernel.
`dispatch.choose` picks the implementation at trace time; `reference` is ``"xla"``, and the package
`wush_kernels`, loaded for a GPU only, has the others.

Gradients with respect to x are straight-through: rounding counts as the identity. Fast
implementations have none with respect to the kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import dispatch
from wush_jax.ops.dispatch import IMPLEMENTATIONS
from wush_jax.ops.implementations import xla as reference
from wush_jax.transforms.blocks import pad_features

__all__ = ["IMPLEMENTATIONS", "Activations", "encode", "linear", "matmul"]


class Activations(NamedTuple):
    """Rows ready for `matmul`.

    Attributes:
      values: the quantized numbers without their global scale [*batch, *tokens, K]; of a fast
        implementation, whatever its product reads.
      global_scale: float32 [*batch, 1, 1], or None where activations are not quantized.
      source: x, which carries the gradient past ``values`` of a fast implementation; else None.
    """

    values: Float[Array, "... K"]
    global_scale: Float[Array, "... 1 1"] | None
    source: Float[Array, "... K"] | None = None


def linear(
    x: Float[Array, "*batch *tokens K"],
    kernel: QuantizedKernel,
    *,
    implementation: str | None = None,
) -> Float[Array, "*batch *tokens N"]:
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
    x: Float[Array, "*batch *tokens K"],
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
    chosen = dispatch.choose(kernel, implementation=implementation).implementation
    fast = chosen != "xla" and x.size and _takes(x.dtype)
    if fast:
        values = _per_batch(functools.partial(_fast_encode, name=chosen), kernel.batch_ndim)
        return Activations(values(jax.lax.stop_gradient(x), kernel), kernel.act_global_scale, x)
    rows = _per_batch(functools.partial(reference.encode, kernel=kernel), kernel.batch_ndim)
    return Activations(rows(x, kernel.transform, kernel.act_global_scale), kernel.act_global_scale)


def matmul(
    activations: Activations,
    kernel: QuantizedKernel,
    dtype: jnp.dtype,
    *,
    implementation: str | None = None,
) -> Float[Array, "*batch *tokens N"]:
    """Contracts encoded rows with a kernel: float32 sums, scaled once at the end, then cast.

    Raises: as `linear`.
    """
    chosen = dispatch.choose(kernel, implementation=implementation).implementation
    values, act_global, source = activations
    if source is not None and chosen == "xla":  # rows shared with a layer that has a fast one
        values, act_global, source = encode(source, kernel, implementation="xla")
    if source is not None:
        product = functools.partial(_fast_matmul, (chosen, jnp.dtype(dtype)))
        return _per_batch(product, kernel.batch_ndim)(values, source, kernel)
    contract = functools.partial(reference.contract, kernel=kernel, dtype=dtype)
    return _per_batch(contract, kernel.batch_ndim)(
        values, act_global, kernel.values(), kernel.global_scale
    )


def _takes(dtype: jnp.dtype) -> bool:
    return dtype in (jnp.bfloat16, jnp.float16, jnp.float32)


def _fast_encode(x: Float[Array, "*tokens K"], kernel: QuantizedKernel, name: str) -> Array:
    from wush_jax.ops.implementations import gpu as wush_linear

    x = pad_features(x, kernel.padded_features)
    rows = wush_linear.encode(x.reshape(-1, x.shape[-1]), kernel, name)
    return jax.tree.map(lambda leaf: leaf.reshape(*x.shape[:-1], leaf.shape[-1]), rows)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fast_matmul(
    how: tuple[str, jnp.dtype], values: Array, source: Array, kernel: QuantizedKernel
) -> Array:
    from wush_jax.ops.implementations import gpu as wush_linear

    name, dtype = how
    rows = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), values)
    y = wush_linear.matmul(rows, kernel, dtype, name)
    return y.reshape(*source.shape[:-1], y.shape[-1])


@_fast_matmul.defjvp
def _fast_matmul_jvp(how, primals, tangents):
    _, _, kernel = primals
    y = _fast_matmul(how, *primals)
    rotated = reference.rotate(tangents[1], kernel.transform, kernel)
    weights = kernel.values() * kernel.global_scale
    return y, jnp.einsum("...k,nk->...n", rotated, weights).astype(y.dtype)


def _per_batch(function: Callable[..., Any], ndim: int) -> Callable[..., Any]:
    """``function`` mapped over ``ndim`` leading axes of all its arguments."""
    for _ in range(ndim):
        function = jax.vmap(function)
    return function
