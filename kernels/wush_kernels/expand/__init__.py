"""Packed 4-bit weights to FP8, exactly."""

from wush_kernels.expand.api import exponent_window, expand

__all__ = ["expand", "exponent_window"]
