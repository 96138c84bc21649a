"""Quantized activations times quantized weights."""

from wush_kernels.quantized_matmul.api import VARIANTS, decode_matmul, fp8_matmul

__all__ = ["VARIANTS", "decode_matmul", "fp8_matmul"]
