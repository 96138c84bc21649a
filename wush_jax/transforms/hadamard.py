"""The Sylvester-Hadamard matrix: the data-free part of every mixed transform."""

from __future__ import annotations

import numpy as np


def signs(block: int) -> np.ndarray:
    """The Sylvester-Hadamard matrix of order D with entries ±1 (int8 [D, D], symmetric).

    Raises:
      ValueError: D is not a power of two.
    """
    if block < 1 or block & (block - 1):
        raise ValueError(f"transform block D={block} is not a power of two; use 16, 32, 64 or 128")
    index = np.arange(block)
    parity = np.bitwise_count(index[:, None] & index[None, :]) & 1
    return (1 - 2 * parity.astype(np.int8)).astype(np.int8)


def matrix(block: int) -> np.ndarray:
    """Sylvester-Hadamard / sqrt(D): float32 [D, D], orthogonal and symmetric."""
    return (signs(block) / np.sqrt(block)).astype(np.float32)
