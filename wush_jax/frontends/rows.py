"""What front ends do with one call of a linear layer: look at its rows, or compare outputs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wush_jax.frontends import masks
from wush_jax.layers.contraction import Contraction, kernel_to_matrix
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import online
from wush_jax.statistics import observation
from wush_jax.statistics.moments import Mask
from wush_jax.statistics.observation import Observation


def observe(
    contraction: Contraction, x: Float[Array, "*_"], block: int, sample: int, mask: Mask | None
) -> Observation:
    """`statistics.observation.observe` of a layer's input as the layer is given it.

    Args:
      x: in the layer's own axes.
      block: D.
      sample: how many tokens to draw.
      mask: [*tokens] of the batch.

    Returns:
      One observation for each batch axis (expert) of the layer.
    """
    rows = contraction.rows(x)
    batched = contraction.roles.count("b")
    tokens = masks.of_tokens(mask, rows.shape[batched:-1])
    look = functools.partial(observation.observe, block=block, sample=sample, mask=tokens)
    for _ in range(batched):
        look = jax.vmap(look)
    return look(rows)


def squares(
    contraction: Contraction,
    x: Float[Array, "*_"],
    weight: Float[Array, "*_"],
    kernel: QuantizedKernel,
    mask: Mask | None,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """‖y - xW‖² and ‖xW‖² of one call, float32; y as the layer computes it in x's dtype.

    Args:
      x: in the layer's own axes and dtype.
      weight: W, float, in its own axes.
      kernel: the quantized one.
      mask: [*tokens] of the batch.
    """
    rows = contraction.rows(x)
    batched = contraction.roles.count("b")
    tokens = masks.of_tokens(mask, rows.shape[batched:-1])
    flat = rows.reshape(*rows.shape[:batched], -1, rows.shape[-1])
    matrix = kernel_to_matrix(weight, contraction.roles).astype(jnp.float32)
    exact = jnp.matmul(flat.astype(jnp.float32), matrix, precision="highest")
    difference = online.linear(flat, kernel).astype(jnp.float32) - exact
    keep = jnp.ones((), bool) if tokens is None else tokens.astype(bool).reshape(-1, 1)
    error, norm = (jnp.sum(jnp.where(keep, y, 0) ** 2) for y in (difference, exact))
    return error, norm
