"""``fp8``, ``fp8_mosaic``, ``fp8_precise``: MXFP4 exactly on FP8 tensor cores, on Hopper.

    up to 64 tokens    E5M2 rows, 4-bit weights decoded to float16 inside the product
    more               E5M2 rows, weights expanded to E4M3 before an FP8 product

The first reads 4-bit weights once and is bound by memory. The second expands the weights before
each product: 24 us beside 300 us for 4096 x 14336 x 4096 on an H200.

Few tokens take two kernels, not one. A program of their product owns 16 or 32 output features; to
transform the tokens itself it would read all of T, 2 D bytes for each of K features, beside the 8.5
or 17 bytes of weights that it has there. Transforming them once takes 3 us in all.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wush_jax.formats import scales
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops.device import Device
from wush_jax.ops.implementations.base import Regime
from wush_jax.ops.implementations.gpu import FEW, Gpu, from_data, inexact


class Fp8(Gpu):
    """Triton kernels around XLA's FP8 matrix product."""

    name = "fp8"
    summary = "MXFP4 exactly on FP8 tensor cores: Triton kernels around XLA's FP8 matrix product"
    rows = "e5m2"
    private = True
    pairs = (("mxfp4", "mxfp4"),)
    product = "XLA's FP8 product"

    def unfit(self, kernel: QuantizedKernel) -> str | None:
        if kernel.exact_in != "float8":
            return f"the weights' group scales span more than FP8 holds ({kernel.exact_in} does)"
        return inexact(kernel) or from_data(kernel)

    def regimes(self, kernel: QuantizedKernel) -> tuple[Regime, ...]:
        from wush_jax.ops.implementations import gpu_products, gpu_rows

        kept = "kept in E4M3" if kernel.expanded is not None else "expanded to E4M3"
        many = functools.partial(gpu_products.fp8, name=self.name)
        return (
            Regime(FEW, gpu_products.FEW, gpu_rows.folded, gpu_products.few),
            Regime(None, f"weights {kept}, {self.product}", gpu_rows.folded, many),
        )

    def prepared(self, kernel: QuantizedKernel, *, keep_fp8: bool) -> QuantizedKernel:
        if keep_fp8 and kernel.expanded is None:
            kernel = dataclasses.replace(kernel, expanded=_fp8_weights(kernel))
        return super().prepared(kernel, keep_fp8=keep_fp8)


class Fp8Mosaic(Fp8):
    """The same with a Pallas Mosaic GPU matrix product."""

    name = "fp8_mosaic"
    summary = "as fp8, with a Pallas Mosaic GPU matrix product"
    product = "a Pallas Mosaic GPU product"

    def unasked(self, device: Device) -> bool:
        return False


class Fp8Precise(Fp8):
    """The same, accumulating in full float32."""

    name = "fp8_precise"
    summary = "as fp8, accumulating in full float32"
    product = "XLA's FP8 product with promoted accumulation"

    def unasked(self, device: Device) -> bool:
        return False


@jax.jit
def _fp8_weights(kernel: QuantizedKernel) -> Float[Array, "*stack N K"]:
    """element * 2^(byte - 127 + offset), exactly (`QuantizedKernel.exact_in` is "float8")."""
    assert kernel.exponents is not None
    factor = scales.power_of_two(kernel.exponents[..., 1:])
    return (kernel.values() * factor).astype(jnp.float8_e4m3fn)
