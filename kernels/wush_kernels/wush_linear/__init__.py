"""A whole quantized layer."""

from wush_kernels.wush_linear.api import wush_linear

__all__ = ["wush_linear"]
