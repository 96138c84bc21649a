"""A whole quantized layer, in the two steps of `wush_jax.ops`."""

from wush_kernels.wush_linear.api import encode, matmul

__all__ = ["encode", "matmul"]
