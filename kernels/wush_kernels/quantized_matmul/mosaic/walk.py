"""Where one block is: the output tiles it works through, and the stages that their steps use."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from wush_kernels.quantized_matmul.mosaic.config import TILE_K, Config


@dataclasses.dataclass(frozen=True)
class Walk:
    """Blocks take tiles in turn: tile number t of this block is tile t * blocks + block of all.

    Attributes:
      config: tile sizes; `sizes`: (m, n, k) of the product, padded.
      block: this block's number of `blocks`; of the pair's, where two blocks have neighbouring
        tiles, and then `rank` says which of the two this is.
      tiles: how many tiles this block has.
    """

    config: Config
    sizes: tuple[int, int, int]
    block: Any
    rank: Any
    blocks: Any
    tiles: Any

    @classmethod
    def here(cls, config: Config, sizes: tuple[int, int, int]) -> Walk:
        """That of the block that runs this."""
        block, rank = lax.axis_index("block"), lax.axis_index("pair")
        blocks = lax.axis_size("block")
        rows, columns = grid(config, sizes)
        tiles = lax.div(rows * columns - block + (blocks - 1), blocks)
        return cls(config, sizes, block, rank, blocks, tiles)

    @property
    def steps(self) -> int:
        """K tiles of one output tile."""
        return self.sizes[2] // TILE_K

    def corner(self, tile):
        """First row and column of this block's tile number ``tile``."""
        c = self.config
        number = tile * self.blocks + self.block
        row, column = plgpu.planar_snake(number, grid(c, self.sizes), "mn".index(c.raster), c.width)
        pair_m, pair_n = c.pair
        return (
            (row * pair_m + self.rank * (pair_m - 1)) * c.tile_m,
            (column * pair_n + self.rank * (pair_n - 1)) * c.tile_n,
        )

    def first_stage(self, tile):
        """The stage of tile number ``tile``'s first step."""
        return lax.rem(tile * self.steps, self.config.stages)

    def next_stage(self, stage):
        return lax.select(stage == self.config.stages - 1, jnp.int32(0), stage + 1)


def grid(config: Config, sizes: tuple[int, int, int]) -> tuple[int, int]:
    """Rows and columns of tiles, or of pairs of tiles where two blocks go together."""
    m, n, _ = sizes
    pair_m, pair_n = config.pair
    return -(-m // (config.tile_m * pair_m)), -(-n // (config.tile_n * pair_n))
