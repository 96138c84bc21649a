"""``bf16``: 4-bit weights of every exact kind, expanded to bfloat16 for products of many tokens."""

from __future__ import annotations

from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops.implementations.base import Regime
from wush_jax.ops.implementations.gpu import FEW, Gpu, inexact


class Bf16(Gpu):
    """Triton kernels around XLA's bfloat16 matrix product, on Hopper."""

    name = "bf16"
    summary = (
        "4-bit weights expanded to bfloat16 (few tokens: decoded to float16) by Triton kernels"
    )
    rows = "16-bit values"
    private = True
    pairs = (("mxfp4", None), ("nvfp4", None), ("mxfp4", "mxfp4"), ("nvfp4", "nvfp4"))

    def unfit(self, kernel: QuantizedKernel) -> str | None:
        return inexact(kernel)

    def regimes(self, kernel: QuantizedKernel) -> tuple[Regime, ...]:
        from wush_jax.ops.implementations import gpu_products, gpu_rows

        folded = kernel.act_format is not None and kernel.act_format.name == "mxfp4"
        few = gpu_rows.folded if folded else gpu_rows.few_values
        many = gpu_rows.folded if folded else gpu_rows.many_values
        what = "weights expanded to bfloat16, XLA's bfloat16 product"
        return (
            Regime(FEW, gpu_products.FEW, few, gpu_products.few),
            Regime(None, what, many, gpu_products.bf16),
        )
