"""What the kernel reads and writes: references, as Pallas hands them to one block."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Memory:
    """References of one block; GMEM unless said.

    Attributes:
      a: [m, k] FP8. b: [n, k] FP8, or [k, n] without k_major (the interpreter's form).
      factor: [1] float32.
      bias: [n] float32, or None.
      out: [m, n].
      a_tiles: SMEM [stages, tile_m, TILE_K]. b_tiles: SMEM [stages, tile_n, TILE_K], or
        [stages, TILE_K, tile_n].
      staged: SMEM [2, 2, rows, chunk], two buffers of results a warpgroup.
      loaded: barriers [stages], or [2 * stages] where each warpgroup has tiles of its own.
      consumed: barriers [stages], of the pair of blocks where there is one.
      bias_tile: SMEM [2, columns] float32. bias_loaded: barriers [2]. Both None without a bias.
      k_major: whether b and b_tiles have K last.
    """

    a: Any
    b: Any
    factor: Any
    bias: Any
    out: Any
    a_tiles: Any
    b_tiles: Any
    staged: Any
    loaded: Any
    consumed: Any
    bias_tile: Any
    bias_loaded: Any
    k_major: bool
