"""The kernel, for one block: who loads and who multiplies."""

from __future__ import annotations

from typing import Any

import jax.experimental.pallas.mosaic_gpu as plgpu
from jax import lax

from wush_kernels.quantized_matmul.mosaic import multiply
from wush_kernels.quantized_matmul.mosaic.config import WARPGROUPS, Config
from wush_kernels.quantized_matmul.mosaic.load import Loader
from wush_kernels.quantized_matmul.mosaic.memory import Memory
from wush_kernels.quantized_matmul.mosaic.walk import Walk


def kernel(
    a,
    b,
    factor,
    *rest,
    bias_tile: Any = None,
    bias_loaded: Any = None,
    config: Config,
    sizes: tuple[int, int, int],
    activation: str | None,
    precise: bool,
    k_major: bool,
    **scratch: Any,
):
    """out = activation(factor * a bᵀ + bias).

    Args:
      rest: (bias, out) or (out,); these, a, b, factor and the scratch are `Memory`'s references.
      config: see `Config`. sizes: (m, n, k), padded.
      activation: one of `epilogue.ACTIVATIONS`.
      precise: promote the sums of every K tile.
    """
    *bias, out = rest
    memory = Memory(
        a=a,
        b=b,
        factor=factor,
        bias=bias[0] if bias else None,
        out=out,
        bias_tile=bias_tile,
        bias_loaded=bias_loaded,
        k_major=k_major,
        **scratch,
    )
    warpgroup = lax.axis_index("warpgroup")
    walk = Walk.here(config, sizes)

    def run_multiplier():
        plgpu.set_max_registers(multiply.REGISTERS, action="increase")
        multiply.Multiplier.here(memory, walk, warpgroup, activation, precise).run()

    lax.cond(warpgroup == WARPGROUPS, Loader(memory, walk).run, run_multiplier)
