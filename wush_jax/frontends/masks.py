"""Which tokens of a layer's input count, by a mask that was made for the batch."""

from __future__ import annotations

import jax.numpy as jnp

from wush_jax.statistics.moments import Mask


def of_tokens(mask: Mask | None, tokens: tuple[int, ...]) -> Mask | None:
    """The mask as [*tokens], for a layer whose input it fits; None where it does not apply.

    Args:
      mask: non-zero where a token counts; its axes are the leading ones of ``tokens``, or it has as
        many entries as a layer with flattened tokens has rows.
      tokens: the layer's own axes of tokens.
    """
    if mask is None:
        return None
    if tokens[: mask.ndim] == mask.shape:
        return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(tokens) - mask.ndim)), tokens)
    return mask.reshape(tokens) if tokens == (mask.size,) else None
