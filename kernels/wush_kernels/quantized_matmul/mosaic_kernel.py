"""The kernel of `mosaic_gpu`, for one block: walk, load, multiply, epilogue.

Glossary: a *block* has three *warpgroups* of 128 threads and stays on its multiprocessor; it works
through *tiles* of the output. Warpgroup 2 loads: it fills a ring of `stages` pairs of operand tiles
by TMA, across the borders of output tiles, so that the next tile's first operands arrive during an
epilogue. Warpgroups 0 and 1 multiply (wgmma, operands from shared memory, sums in registers) and
write their results through shared memory, by TMA. Barriers: `loaded` (TMA -> multiplier) and
`consumed` (multiplier -> loader), one pair a stage; a *step* is one K tile of one output tile and
uses stage step % stages.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from wush_kernels.quantized_matmul.mosaic_config import TILE_K, WARPGROUPS, Config

ACTIVATIONS = (None, "gelu", "silu")
LOADER_REGISTERS, MULTIPLIER_REGISTERS = 40, 232  # 128 * (40 + 2 * 232) of the 65,536


def kernel(
    a,
    b,
    factor,
    *rest,
    a_tiles,
    b_tiles,
    staged,
    loaded,
    consumed,
    bias_tile: Any = None,
    bias_loaded: Any = None,
    config: Config,
    sizes: tuple[int, int, int],
    activation: str | None,
    precise: bool,
    k_major: bool,
):
    """out = activation(factor * a bᵀ + bias).

    Args (references; GMEM unless said):
      a: [m, k] FP8. b: [n, k] FP8, or [k, n] without k_major (the interpreter's form).
      factor: [1] float32.
      rest: (bias [n] float32, out [m, n]) or (out,).
      a_tiles: SMEM [stages, tile_m, TILE_K]. b_tiles: SMEM [stages, tile_n, TILE_K], or
        [stages, TILE_K, tile_n].
      staged: SMEM [2, 2, rows, chunk], two buffers of results a warpgroup.
      loaded: barriers [stages], or [2 * stages] where each warpgroup has tiles of its own.
      consumed: barriers [stages], of the pair of blocks where there is one.
      bias_tile: SMEM [2, columns] float32. bias_loaded: barriers [2].
    """
    c = config
    out = rest[-1]
    m, n, k = sizes
    stages = a_tiles.shape[0]
    per_tile = k // TILE_K
    pair_m, pair_n = (1 + (c.cluster == axis) for axis in ("m", "n"))
    grid = (-(-m // (c.tile_m * pair_m)), -(-n // (c.tile_n * pair_n)))
    own_tiles = c.split == "tile"

    warpgroup = lax.axis_index("warpgroup")
    block, rank = lax.axis_index("block"), lax.axis_index("pair")
    blocks = lax.axis_size("block")
    mine = lax.div(grid[0] * grid[1] - block + (blocks - 1), blocks)  # tiles of this block

    def corner(tile):
        """First row and column of this block's tile number `tile`."""
        at = plgpu.planar_snake(tile * blocks + block, grid, "mn".index(c.raster), c.width)
        row = (at[0] * pair_m + rank * (pair_m - 1)) * c.tile_m
        column = (at[1] * pair_n + rank * (pair_n - 1)) * c.tile_n
        return row, column

    def first_stage(tile):
        return lax.rem(tile * per_tile, stages)

    def next_stage(stage):
        return lax.select(stage == stages - 1, jnp.int32(0), stage + 1)

    def load():
        plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")

        @pl.loop(0, mine)
        def _tile(tile):
            row, column = corner(tile)

            def step(i, stage):
                @pl.when(tile * per_tile + i >= stages)
                def _free():
                    plgpu.barrier_wait(consumed.at[stage])

                depth = pl.ds(i * TILE_K, TILE_K)
                columns = pl.ds(column, c.tile_n)
                done = loaded.at[lax.rem(tile, 2) * stages + stage if own_tiles else stage]
                plgpu.copy_gmem_to_smem(
                    a.at[pl.ds(row, c.tile_m), depth],
                    a_tiles.at[stage],
                    done,
                    collective_axes="pair" if c.cluster == "n" else None,
                )
                plgpu.copy_gmem_to_smem(
                    b.at[columns, depth] if k_major else b.at[depth, columns],
                    b_tiles.at[stage],
                    done,
                    collective_axes="pair" if c.cluster == "m" else None,
                )
                return next_stage(stage)

            lax.fori_loop(0, per_tile, step, first_stage(tile))

        # No block may end while another can still signal it.
        @pl.loop(lax.max(mine * per_tile - stages, 0), mine * per_tile)
        def _drain(step):
            plgpu.barrier_wait(consumed.at[lax.rem(step, stages)])

    def multiply():
        plgpu.set_max_registers(MULTIPLIER_REGISTERS, action="increase")
        scale = factor[0]
        top = warpgroup * c.rows if c.split == "m" else 0
        left = warpgroup * c.columns if c.split == "n" else 0
        first_barrier = warpgroup * stages if own_tiles else 0

        def add_product(sums, stage):
            """Starts sums += a tile * b tile, once they are there."""
            plgpu.barrier_wait(loaded.at[first_barrier + stage])
            rows, columns = pl.ds(top, c.rows), pl.ds(left, c.columns)
            if k_major:
                right = b_tiles.at[stage, columns].transpose((1, 0))
            else:
                right = b_tiles.at[stage, :, columns]
            plgpu.wgmma(sums, a_tiles.at[stage, rows], right)

        accumulator = plgpu.WGMMAAccumulatorRef((c.rows, c.columns), jnp.float32)

        def partial_sums(stage, steps: int):
            """Products of K tiles from ``stage`` on, in one accumulator; (next stage, sums).

            A product is in flight while the next one is started.
            """

            @functools.partial(pl.run_scoped, sums=accumulator)
            def result(sums):
                add_product(sums, stage)

                def step(_, stage):
                    following = next_stage(stage)
                    add_product(sums, following)
                    plgpu.wgmma_wait(1)
                    plgpu.barrier_arrive(consumed.at[stage])
                    return following

                last = lax.fori_loop(1, steps, step, stage) if steps > 1 else stage
                y = sums[...]
                plgpu.barrier_arrive(consumed.at[last])
                return next_stage(last), y

            return result

        def all_sums(stage):
            """Over K, promoted every `segment` of its tiles."""
            segment = 1 if precise else min(c.promote or per_tile, per_tile)
            if segment == per_tile:
                return partial_sums(stage, per_tile)[1]

            def add(steps):
                def body(_, carry):
                    stage, part = partial_sums(carry[0], steps)
                    return stage, carry[1] + part

                return body

            segments, rest = divmod(per_tile, segment)
            carry = stage, jnp.zeros((c.rows, c.columns), jnp.float32)
            carry = lax.fori_loop(0, segments, add(segment), carry)
            return (add(rest)(0, carry) if rest else carry)[1]

        def one_tile(tile):
            row, column = corner(tile)
            row, column = row + top, column + left
            if bias_tile is not None:
                plgpu.copy_gmem_to_smem(
                    rest[0].at[pl.ds(column, c.columns)],
                    bias_tile.at[warpgroup],
                    bias_loaded.at[warpgroup],
                )
            y = all_sums(first_stage(tile))
            if bias_tile is not None:
                plgpu.barrier_wait(bias_loaded.at[warpgroup])
            _, slots, height, width = staged.shape
            count = 0
            for i in range(0, c.rows, height):
                for j in range(0, c.columns, width):
                    z = y[i : i + height, j : j + width] * scale
                    if bias_tile is not None:
                        z += lax.broadcast_in_dim(
                            bias_tile[warpgroup, pl.ds(j, width)], z.shape, (1,)
                        )
                    buffer = staged.at[warpgroup, count % slots]
                    # The first buffer may be the one that the last tile's last store still reads.
                    plgpu.wait_smem_to_gmem(slots - 1 if count else 0, wait_read_only=True)
                    buffer[...] = activate(z, activation).astype(out.dtype)
                    plgpu.commit_smem()
                    plgpu.copy_smem_to_gmem(
                        buffer, out.at[pl.ds(row + i, height), pl.ds(column + j, width)]
                    )
                    count += 1

        if own_tiles:

            @pl.loop(0, lax.div(mine - warpgroup + 1, 2))
            def _own(i):
                one_tile(WARPGROUPS * i + warpgroup)

        else:
            pl.loop(0, mine)(one_tile)
        plgpu.wait_smem_to_gmem(0)

    lax.cond(warpgroup == WARPGROUPS, load, multiply)


def activate(y, activation: str | None):
    """gelu (tanh form) or silu, y * sigmoid(z) = y / (1 + 2^(-z log2 e)), float32.

    The quotient is the square of a reciprocal square root: two rounding steps, no division.
    """
    if activation is None:
        return y
    if activation == "silu":
        z = y
    else:  # 0.5 y (1 + tanh(u)) = y sigmoid(2 u)
        z = y * (math.sqrt(8 / math.pi) + math.sqrt(8 / math.pi) * 0.044715 * (y * y))
    root = lax.rsqrt(1.0 + jnp.exp2(z * -math.log2(math.e)))
    return y * root * root
