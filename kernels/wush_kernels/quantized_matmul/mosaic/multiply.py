"""Warpgroups 0 and 1: products of operand tiles, summed in registers."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from wush_kernels.quantized_matmul.mosaic.config import WARPGROUPS
from wush_kernels.quantized_matmul.mosaic.epilogue import Epilogue
from wush_kernels.quantized_matmul.mosaic.memory import Memory
from wush_kernels.quantized_matmul.mosaic.walk import Walk

REGISTERS = 232  # see `load.REGISTERS`


@dataclasses.dataclass(frozen=True)
class Multiplier:
    """One of the two warpgroups.

    Attributes:
      top, left: its first row and column within a tile.
      first_barrier: its first of `Memory.loaded`.
      segment: K tiles that are summed in one accumulator.
    """

    memory: Memory
    walk: Walk
    warpgroup: Any
    epilogue: Epilogue
    top: Any
    left: Any
    first_barrier: Any
    segment: int

    @classmethod
    def here(cls, memory: Memory, walk: Walk, warpgroup, activation, precise: bool) -> Multiplier:
        """The warpgroup that runs this."""
        c = walk.config
        epilogue = Epilogue(memory, c, warpgroup, memory.factor[0], activation)
        return cls(
            memory=memory,
            walk=walk,
            warpgroup=warpgroup,
            epilogue=epilogue,
            top=warpgroup * c.rows if c.split == "m" else 0,
            left=warpgroup * c.columns if c.split == "n" else 0,
            first_barrier=warpgroup * c.stages if c.split == "tile" else 0,
            segment=1 if precise else min(c.promote or walk.steps, walk.steps),
        )

    def run(self):
        """Its part of every tile of the block, or the whole of every second tile."""
        if self.walk.config.split == "tile":

            @pl.loop(0, lax.div(self.walk.tiles - self.warpgroup + 1, 2))
            def _own(i):
                self.one_tile(WARPGROUPS * i + self.warpgroup)

        else:
            pl.loop(0, self.walk.tiles)(self.one_tile)
        plgpu.wait_smem_to_gmem(0)

    def one_tile(self, tile):
        row, column = self.walk.corner(tile)
        row, column = row + self.top, column + self.left
        self.epilogue.fetch_bias(column)
        self.epilogue.store(self.all_sums(self.walk.first_stage(tile)), row, column)

    def all_sums(self, stage):
        """[rows, columns] float32 over K, from ``stage`` on: promoted every `segment` K tiles."""
        c, steps = self.walk.config, self.walk.steps
        if self.segment == steps:
            return self.partial_sums(stage, steps)[1]

        def add(count):
            def body(_, carry):
                stage, part = self.partial_sums(carry[0], count)
                return stage, carry[1] + part

            return body

        segments, rest = divmod(steps, self.segment)
        carry = stage, jnp.zeros((c.rows, c.columns), jnp.float32)
        carry = lax.fori_loop(0, segments, add(self.segment), carry)
        return (add(rest)(0, carry) if rest else carry)[1]

    def partial_sums(self, stage, steps: int):
        """Products of ``steps`` K tiles from ``stage`` on, in one accumulator; (next stage, sums).

        A product is in flight while the next one is started.
        """
        c, consumed = self.walk.config, self.memory.consumed
        accumulator = plgpu.WGMMAAccumulatorRef((c.rows, c.columns), jnp.float32)

        @functools.partial(pl.run_scoped, sums=accumulator)
        def result(sums):
            self.add_product(sums, stage)

            def step(_, stage):
                following = self.walk.next_stage(stage)
                self.add_product(sums, following)
                plgpu.wgmma_wait(1)
                plgpu.barrier_arrive(consumed.at[stage])
                return following

            last = lax.fori_loop(1, steps, step, stage) if steps > 1 else stage
            y = sums[...]
            plgpu.barrier_arrive(consumed.at[last])
            return self.walk.next_stage(last), y

        return result

    def add_product(self, sums, stage):
        """Starts sums += a tile * b tile, once they are there."""
        c, memory = self.walk.config, self.memory
        plgpu.barrier_wait(memory.loaded.at[self.first_barrier + stage])
        rows, columns = pl.ds(self.top, c.rows), pl.ds(self.left, c.columns)
        if memory.k_major:
            right = memory.b_tiles.at[stage, columns].transpose((1, 0))
        else:
            right = memory.b_tiles.at[stage, :, columns]
        plgpu.wgmma(sums, memory.a_tiles.at[stage, rows], right)
