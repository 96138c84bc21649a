"""Number formats: grids, scales, the table of formats, and arrays stored in them."""

from wush_jax.formats.codec import (
    Quantized,
    codes_to_values,
    data_global_scale,
    dequantize,
    fake_quantize,
    quantize,
    quantized_values,
    scales_to_values,
)
from wush_jax.formats.elements import pack, unpack
from wush_jax.formats.format import Format, activation_scale, get_format
from wush_jax.formats.scales import magnitude_bits

__all__ = [
    "Format",
    "Quantized",
    "activation_scale",
    "codes_to_values",
    "data_global_scale",
    "dequantize",
    "fake_quantize",
    "get_format",
    "magnitude_bits",
    "pack",
    "quantize",
    "quantized_values",
    "scales_to_values",
    "unpack",
]
