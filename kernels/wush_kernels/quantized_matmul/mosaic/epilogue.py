"""What follows the sums: activation(factor * sums + bias), through shared memory to the output."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax

from wush_kernels.quantized_matmul.mosaic.config import Config
from wush_kernels.quantized_matmul.mosaic.memory import Memory

ACTIVATIONS = (None, "gelu", "silu")


@dataclasses.dataclass(frozen=True)
class Epilogue:
    """That of one warpgroup. factor: float32 scalar; activation: one of `ACTIVATIONS`."""

    memory: Memory
    config: Config
    warpgroup: Any
    factor: Any
    activation: str | None

    def fetch_bias(self, column):
        """Starts the copy of the bias of a tile from ``column`` on, if there is one."""
        memory = self.memory
        if memory.bias is not None:
            plgpu.copy_gmem_to_smem(
                memory.bias.at[pl.ds(column, self.config.columns)],
                memory.bias_tile.at[self.warpgroup],
                memory.bias_loaded.at[self.warpgroup],
            )

    def store(self, sums, row, column):
        """Writes [rows, columns] sums to the output from (row, column) on, part by part.

        Parts take turns in two buffers: one is written while the other is stored.
        """
        c, memory = self.config, self.memory
        if memory.bias is not None:
            plgpu.barrier_wait(memory.bias_loaded.at[self.warpgroup])
        _, slots, height, width = memory.staged.shape
        corners = [(i, j) for i in range(0, c.rows, height) for j in range(0, c.columns, width)]
        for count, (i, j) in enumerate(corners):
            y = self.finished(sums[i : i + height, j : j + width], j)
            buffer = memory.staged.at[self.warpgroup, count % slots]
            # The first buffer may be the one that the last tile's last store still reads.
            plgpu.wait_smem_to_gmem(slots - 1 if count else 0, wait_read_only=True)
            buffer[...] = activate(y, self.activation).astype(memory.out.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(
                buffer, memory.out.at[pl.ds(row + i, height), pl.ds(column + j, width)]
            )

    def finished(self, sums, column: int):
        """factor * sums + bias, for columns of the tile from ``column`` on."""
        y = sums * self.factor
        if self.memory.bias is None:
            return y
        columns = pl.ds(column, y.shape[1])
        return y + lax.broadcast_in_dim(
            self.memory.bias_tile[self.warpgroup, columns], y.shape, (1,)
        )


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
