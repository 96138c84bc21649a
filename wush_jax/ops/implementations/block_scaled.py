"""``block_scaled``: native block-scaled FP4 tensor cores. Compiled for Blackwell, not run there."""

from __future__ import annotations

from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops.device import Device
from wush_jax.ops.implementations.base import Regime
from wush_jax.ops.implementations.gpu import BLACKWELL, HOPPER, Gpu


class BlockScaled(Gpu):
    """Codes and scales of both sides, multiplied by `tl.dot_scaled`.

    On Hopper, which has no such units, it runs where it is named: a baseline.
    """

    name = "block_scaled"
    summary = "native block-scaled FP4 tensor cores, by Triton (compiled, not run)"
    rows = "codes"
    capabilities = (HOPPER, *BLACKWELL)
    pairs = (("mxfp4", "mxfp4"), ("nvfp4", "nvfp4"))

    def unasked(self, device: Device) -> bool:
        return device.capability in BLACKWELL

    def unfit(self, kernel: QuantizedKernel) -> str | None:
        return None if kernel.layout == "public" else "it reads the public layout (unprepare)"

    def regimes(self, kernel: QuantizedKernel) -> tuple[Regime, ...]:
        from wush_jax.ops.implementations import gpu_products, gpu_rows

        what = "4-bit codes times 4-bit codes"
        return (Regime(None, what, gpu_rows.codes, gpu_products.block_scaled),)
