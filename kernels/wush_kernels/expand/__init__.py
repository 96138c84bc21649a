"""Packed 4-bit weights to FP8 or bfloat16, exactly."""

from wush_kernels.expand.api import expand

__all__ = ["expand"]
