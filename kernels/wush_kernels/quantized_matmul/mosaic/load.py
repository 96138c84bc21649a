"""Warpgroup 2: keeps the ring of operand tiles full, by TMA."""

from __future__ import annotations

import dataclasses

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
from jax import lax

from wush_kernels.quantized_matmul.mosaic.config import TILE_K
from wush_kernels.quantized_matmul.mosaic.memory import Memory
from wush_kernels.quantized_matmul.mosaic.walk import Walk

REGISTERS = 40  # 128 * (40 + 2 * 232) of the 65,536


@dataclasses.dataclass(frozen=True)
class Loader:
    memory: Memory
    walk: Walk

    def run(self):
        plgpu.set_max_registers(REGISTERS, action="decrease")
        pl.loop(0, self.walk.tiles)(self.load_tile)
        self.drain()

    def load_tile(self, tile):
        """Every step of one output tile, each as soon as its stage is free."""
        walk = self.walk
        row, column = walk.corner(tile)

        def step(i, stage):
            @pl.when(tile * walk.steps + i >= walk.config.stages)
            def _free():
                plgpu.barrier_wait(self.memory.consumed.at[stage])

            self.copy(tile, row, column, pl.ds(i * TILE_K, TILE_K), stage)
            return walk.next_stage(stage)

        lax.fori_loop(0, walk.steps, step, walk.first_stage(tile))

    def copy(self, tile, row, column, depth, stage):
        """Starts the copies of one step; a pair of blocks gets the operand it shares by one."""
        c, memory = self.walk.config, self.memory
        columns = pl.ds(column, c.tile_n)
        own = lax.rem(tile, 2) * c.stages + stage if c.split == "tile" else stage
        done = memory.loaded.at[own]
        plgpu.copy_gmem_to_smem(
            memory.a.at[pl.ds(row, c.tile_m), depth],
            memory.a_tiles.at[stage],
            done,
            collective_axes="pair" if c.cluster == "n" else None,
        )
        plgpu.copy_gmem_to_smem(
            memory.b.at[columns, depth] if memory.k_major else memory.b.at[depth, columns],
            memory.b_tiles.at[stage],
            done,
            collective_axes="pair" if c.cluster == "m" else None,
        )

    def drain(self):
        """Waits for what is still to be consumed: no block may end while another can signal it."""
        stages, steps = self.walk.config.stages, self.walk.tiles * self.walk.steps

        @pl.loop(lax.max(steps - stages, 0), steps)
        def _drain(step):
            plgpu.barrier_wait(self.memory.consumed.at[lax.rem(step, stages)])
