"""Which token each position of a batch should predict, and which positions count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from wush_jax.statistics.moments import Mask

Targets = Callable[[Any], Int[Array, "B T"]]


def wanted(
    batch: Any,
    logits: tuple[int, ...],
    targets: Targets | None,
    mask: Callable[[Any], Mask] | None,
) -> tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]:
    """What each position should predict, and whether it counts.

    Args:
      batch, targets, mask: as for `wush_jax.evaluate`.
      logits: their shape, (B, T, V).

    Returns:
      int32 [B, T], zero where nothing counts, and booleans [B, T].

    Raises:
      ValueError: targets or mask of another shape, or targets outside the vocabulary.
    """
    if targets is None:
        tokens = _first_tokens(batch)
        counts = _counts(tokens.shape, mask, batch)
        counts = counts & np.roll(counts, -1, axis=1)
        counts[:, -1:] = False
        found = np.roll(tokens, -1, axis=1)
    else:
        found = np.asarray(targets(batch))
        counts = _counts(found.shape, mask, batch)
    if found.shape != logits[:2] or not np.issubdtype(found.dtype, np.integer):
        raise ValueError(
            f"the targets are {found.dtype} {found.shape}; logits {logits} take integers "
            f"{logits[:2]} (pass targets=, a function from a batch to them)"
        )
    found = np.where(counts, found, 0)
    if (found < 0).any() or (found >= logits[-1]).any():
        raise ValueError(
            f"targets run from {found.min()} to {found.max()}; logits {logits} have a vocabulary "
            f"of {logits[-1]} (mask positions that predict nothing)"
        )
    return found.astype(np.int32), counts


def _counts(
    shape: tuple[int, ...], mask: Callable[[Any], Mask] | None, batch: Any
) -> Bool[np.ndarray, "*tokens"]:
    kept = np.ones(shape, bool) if mask is None else np.asarray(mask(batch)) != 0
    if kept.shape != shape:
        raise ValueError(f"the mask has shape {kept.shape}; the tokens' shape is {shape}")
    return kept


def _first_tokens(batch: Any) -> Int[np.ndarray, "B T"]:
    # a mapping's own order, which jax.tree would sort
    arrays = list(batch.values()) if isinstance(batch, Mapping) else batch
    for array in jax.tree.leaves(arrays):
        if jnp.issubdtype(jnp.result_type(array), jnp.integer) and jnp.ndim(array) == 2:
            return np.asarray(array)
    raise ValueError(
        f"the batch holds {described(arrays)} but no integers [B, T] to take next tokens from; "
        "pass targets=, a function from a batch to the tokens to predict"
    )


def described(tree: Any) -> str:
    """The arrays of a tree in words: "float32 (2, 8), int32 (2, 8)"."""
    leaves = [f"{x.dtype} {tuple(x.shape)}" for x in jax.tree.leaves(tree) if hasattr(x, "shape")]
    return ", ".join(leaves) or type(tree).__name__
