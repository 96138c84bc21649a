"""Quantized activations times quantized weights."""

from wush_kernels.quantized_matmul.decode import decode_matmul
from wush_kernels.quantized_matmul.xla_products import bf16_matmul, fp8_matmul

__all__ = ["bf16_matmul", "decode_matmul", "fp8_matmul"]
