"""Transform each block of features and quantize each group, in one pass over the activations."""

from wush_kernels.transform_quantize.api import (
    transform_quantize_codes,
    transform_quantize_folded,
    transform_quantize_values,
)

__all__ = [
    "transform_quantize_codes",
    "transform_quantize_folded",
    "transform_quantize_values",
]
