"""Packed 4-bit weights to FP8, exactly."""

from wush_kernels.expand.api import expand, exponent_window

__all__ = ["expand", "exponent_window"]
