"""Launch configurations of the Mosaic GPU product, a pure function of shapes.

The model behind `config`, in clocks of one of the 132 multiprocessors (H100, H200):

* the tensor cores do 4096 FP8 products a clock, so one K tile (128) takes tile_m * tile_n / 32;
* its operands, (tile_m + tile_n) * 128 bytes, come from the L2 cache at some 40 bytes a clock;
* a tile ends with an epilogue that only the loads of the next tile overlap;
* a multiprocessor runs ceil(tiles / multiprocessors) tiles one after the other.
"""

from __future__ import annotations

import dataclasses
import functools

TILE_K = 128  # one 128-byte swizzle atom of FP8, and the interval of promotion
SHARED_BYTES = 232_448  # what a block may use on sm_90
EPILOGUE_ROWS = 64
EPILOGUE_BYTES = 128  # of one row of the staging buffer, one swizzle atom
WARPGROUPS = 2  # that multiply, beside the one that loads


@dataclasses.dataclass(frozen=True)
class Config:
    """Tiles of one block, and how blocks walk over them.

    Attributes:
      tile_m, tile_n: outputs of one tile. Each warpgroup has 64 or 128 rows and 32 to 256 columns.
      stages: K tiles in flight.
      split: which axis of a tile the two warpgroups share out, "m" or "n"; or "tile": each has
        whole tiles of its own and one multiplies while the other is in its epilogue.
      cluster: None, or the axis ("m", "n") along which two blocks have neighbouring tiles and load
        their common operand once, by multicast.
      raster: tiles are walked in bands of `width` tiles along this axis ("m" or "n"), so that the
        multiprocessors at work at one time share operands in the L2 cache.
      width: see raster; counts pairs of tiles along the axis of a cluster.
      promote: where sums are not precise: K tiles (of 128) that are summed before they are added to
        a second float32 accumulator; None: all. The error of the tensor cores' sums grows with K.
    """

    tile_m: int
    tile_n: int
    stages: int
    split: str = "m"
    cluster: str | None = None
    raster: str = "m"
    width: int = 16
    promote: int | None = None

    @property
    def rows(self) -> int:
        """Rows of one warpgroup."""
        return self.tile_m // WARPGROUPS if self.split == "m" else self.tile_m

    @property
    def columns(self) -> int:
        """Columns of one warpgroup."""
        return self.tile_n // WARPGROUPS if self.split == "n" else self.tile_n

    @property
    def pair(self) -> tuple[int, int]:
        """Tiles of a pair of blocks along m and n; (1, 1) where each block is by itself."""
        return 1 + (self.cluster == "m"), 1 + (self.cluster == "n")

    def chunk(self, itemsize: int) -> int:
        """Columns of one epilogue store: a swizzle atom of 128, 64 or 32 bytes."""
        chunk = EPILOGUE_BYTES // itemsize
        while self.columns % chunk:
            chunk //= 2
        return chunk

    def shared_bytes(self, itemsize: int) -> int:
        """Shared memory of a block, bias and barriers included; itemsize: bytes of an output."""
        operands = self.stages * (self.tile_m + self.tile_n) * TILE_K
        staging = WARPGROUPS * 2 * EPILOGUE_ROWS * self.chunk(itemsize) * itemsize
        return operands + staging + WARPGROUPS * self.columns * 4 + 1024

    def check(self, itemsize: int, precise: bool) -> None:
        """Raises ValueError where no kernel can be made of this."""
        if self.split not in ("m", "n", "tile") or self.cluster not in (None, "m", "n"):
            raise ValueError(f"split is 'm', 'n' or 'tile' and cluster None, 'm' or 'n': {self}")
        if self.rows not in (64, 128) or self.columns % 32 or not 32 <= self.columns <= 256:
            raise ValueError(
                f"a warpgroup takes 64 or 128 rows and a multiple of 32 columns up to 256; "
                f"{self} gives it {self.rows} x {self.columns}"
            )
        promoted = precise or self.promote is not None
        most = 64 * 192 if promoted else 64 * 256  # two accumulators or one in 232 registers
        if self.rows * self.columns > most:
            raise ValueError(
                f"a warpgroup's sums, promoted={promoted}, fit in registers up to {most} outputs; "
                f"{self} gives it {self.rows} x {self.columns}"
            )
        if self.stages < 2 or self.shared_bytes(itemsize) > SHARED_BYTES:
            raise ValueError(
                f"{self} takes {self.shared_bytes(itemsize)} bytes of shared memory of "
                f"{SHARED_BYTES}, and at least 2 stages are needed"
            )


@functools.cache
def config(
    M: int, N: int, K: int, *, itemsize: int = 2, precise: bool = False, multiprocessors: int = 132
) -> Config:
    """The default configuration: the cheapest of `candidates` by the module's model.

    Above 2,000 tokens that is 128 x 256 (promoted accumulation, two accumulators in registers:
    128 x 192); below, the tile whose number of waves wastes least: 128 x 224 is one wave of 128
    tiles for M = 256, N = 14336.
    """
    best = min(candidates(itemsize, precise), key=lambda c: clocks(c, M, N, K, multiprocessors))
    # A band as high as it is wide in bytes re-reads least: about sqrt(multiprocessors) tiles.
    tiles_m = -(-M // best.tile_m)
    return dataclasses.replace(best, width=min(16, max(1, tiles_m)))


def candidates(itemsize: int, precise: bool) -> list[Config]:
    """Every shape considered by `config`, with as many stages (at most 6) as fit."""
    shapes = [(128, n, "m") for n in (256, 224, 192, 160, 128, 96, 64)]
    shapes += [(256, n, "m") for n in (96, 128)]
    shapes += [(64, n, "n") for n in (256, 192, 128, 64)]
    if precise:
        shapes = [(m, n, s) for m, n, s in shapes if m * n <= 128 * 192]
    found = []
    for m, n, split in shapes:
        for stages in range(6, 2, -1):
            c = Config(m, n, stages, split)
            if c.shared_bytes(itemsize) <= SHARED_BYTES:
                found.append(c)
                break
    return found


def clocks(c: Config, M: int, N: int, K: int, multiprocessors: int = 132) -> float:
    """Estimated clocks of one product, see the module's docstring."""
    tiles = -(-M // c.tile_m) * -(-N // c.tile_n)
    waves = -(-tiles // multiprocessors)
    multiply = c.tile_m * c.tile_n / 32
    load = (c.tile_m + c.tile_n) * TILE_K / 40
    epilogue = 1000 + c.tile_m * c.tile_n / 32
    return waves * (-(-K // TILE_K) * max(multiply, load) + epilogue)
