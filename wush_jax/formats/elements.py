"""Element grids: the values that a 4 or 8-bit code stands for, without any scale.

Three functions a grid: `round` takes real numbers to grid values, `encode` grid values to codes,
`decode` codes to grid values. Grid values are float32 and exact; only rounding loses anything.

=========  ====  ========================================  ====================================
grid       bits  values                                    code
=========  ====  ========================================  ====================================
E2M1       4     0, .5, 1, 1.5, 2, 3, 4, 6 and signs       sign in bit 3, index of the magnitude
mid-rise   4     q + 1/2 for q in [-8, 7]; holds no zero   q, two's complement nibble
mid-tread  4     q in [-7, 7]                              q, two's complement nibble
int8       8     q in [-127, 127]                          q, two's complement byte
=========  ====  ========================================  ====================================

References: OCP Microscaling Formats (MX) v1.0, section 5.3 (E2M1); arXiv 2512.00956 (the mid-rise
grid for INT4).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float32, UInt8

E2M1_MAX = 6.0
E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

_EXPONENT = 0x7F800000  # exponent field of a float32
_ONE = 0x3F800000  # bits of 1.0
_ULP = 0x00800000  # one step of the exponent field


def e2m1_round(v: Float32[Array, "*s"]) -> Float32[Array, "*s"]:
    """Nearest E2M1 value, ties to the even code, magnitudes above 6 to 6; never minus zero.

    Within the binade e = floor(log2 |v|) the grid is uniform with step 2^(max(e, 0) - 1), so this
    is one `round` half-to-even in units of that step. NaN stays NaN.

    Args:
        v: float32, any shape.
    """
    v = jnp.clip(v, -E2M1_MAX, E2M1_MAX)
    binade = jnp.maximum(lax.bitcast_convert_type(v, jnp.int32) & _EXPONENT, _ONE)
    step = lax.bitcast_convert_type(binade - _ULP, jnp.float32)
    per_step = lax.bitcast_convert_type(2 * _ONE - (binade - _ULP), jnp.float32)
    r = jnp.round(v * per_step) * step
    return jnp.where(r == 0, 0.0, r)


def e2m1_encode(values: Float32[Array, "*s"]) -> UInt8[Array, "*s"]:
    """Codes 0..15 of E2M1 values; zeros of either sign become code 0."""
    magnitude = jnp.abs(values)
    # From 1.0 up, a code counts half binades, and so do the exponent and top mantissa bit together.
    half_binades = (lax.bitcast_convert_type(magnitude, jnp.int32) >> 22) - ((_ONE >> 22) - 2)
    index = jnp.where(magnitude >= 1, half_binades, (2 * magnitude).astype(jnp.int32))
    return jnp.where(values < 0, index | 8, index).astype(jnp.uint8)


def e2m1_decode(codes: UInt8[Array, "*s"]) -> Float32[Array, "*s"]:
    """E2M1 values, float32, of codes 0..15; code 8 (minus zero) decodes to zero."""
    index = (codes & 7).astype(jnp.int32)
    normal = lax.bitcast_convert_type((index + ((_ONE >> 22) - 2)) << 22, jnp.float32)
    magnitude = jnp.where(index < 2, index.astype(jnp.float32) * 0.5, normal)
    return jnp.where(codes > 8, -magnitude, magnitude)


def midrise_round(v: Float32[Array, "*s"]) -> Float32[Array, "*s"]:
    """Nearest of q + 1/2, q in [-8, 7]: the middle of the unit cell that v falls in; ties go up."""
    return jnp.clip(jnp.floor(v), -8.0, 7.0) + 0.5


def midrise_encode(values: Float32[Array, "*s"]) -> UInt8[Array, "*s"]:
    """Nibbles q of mid-rise values q + 1/2."""
    return nibble_encode(jnp.floor(values))


def midrise_decode(codes: UInt8[Array, "*s"]) -> Float32[Array, "*s"]:
    """Mid-rise values q + 1/2, float32, of nibbles q."""
    return nibble_decode(codes) + 0.5


def integer_round(v: Float32[Array, "*s"], limit: float) -> Float32[Array, "*s"]:
    """Nearest integer in [-limit, limit], ties to even; never minus zero."""
    r = jnp.round(jnp.clip(v, -limit, limit))
    return jnp.where(r == 0, 0.0, r)


def nibble_encode(values: Float32[Array, "*s"]) -> UInt8[Array, "*s"]:
    """Two's complement nibbles, in the low half of a byte, of integers in [-8, 7]."""
    return (values.astype(jnp.int32) & 15).astype(jnp.uint8)


def nibble_decode(codes: UInt8[Array, "*s"]) -> Float32[Array, "*s"]:
    """Integers in [-8, 7], float32, of two's complement nibbles."""
    return ((codes.astype(jnp.int32) ^ 8) - 8).astype(jnp.float32)


class Grid(NamedTuple):
    """The three functions of a grid; `pack` and `unpack` are not part of it."""

    round: Callable[[Array], Array]
    encode: Callable[[Array], Array]
    decode: Callable[[Array], Array]


GRIDS = {
    "e2m1": Grid(e2m1_round, e2m1_encode, e2m1_decode),
    "midrise": Grid(midrise_round, midrise_encode, midrise_decode),
    "midtread": Grid(lambda v: integer_round(v, 7.0), nibble_encode, nibble_decode),
    "int8": Grid(
        lambda v: integer_round(v, 127.0),
        lambda values: values.astype(jnp.int8),
        lambda codes: codes.astype(jnp.float32),
    ),
}


def pack(codes: UInt8[Array, "*b K"]) -> UInt8[Array, "*b K/2"]:
    """Two 4-bit codes a byte along the last axis; the low nibble holds the even index.

    Raises:
        ValueError: K is odd, or codes are not uint8.
    """
    if codes.dtype != jnp.uint8 or codes.ndim == 0 or codes.shape[-1] % 2:
        raise ValueError(f"pack takes uint8 [..., K] with even K, not {codes.dtype} {codes.shape}")
    pairs = codes.reshape(*codes.shape[:-1], codes.shape[-1] // 2, 2)
    words = lax.bitcast_convert_type(pairs, jnp.uint16)  # index 0 in the low byte
    return ((words & 15) | ((words >> 4) & 240)).astype(jnp.uint8)


def unpack(packed: UInt8[Array, "*b Kb"]) -> UInt8[Array, "*b 2*Kb"]:
    """The inverse of `pack`: codes 0..15.

    Raises:
        ValueError: packed is not uint8, or is a scalar.
    """
    if packed.dtype != jnp.uint8 or packed.ndim == 0:
        raise ValueError(f"unpack takes uint8 [..., K/2], not {packed.dtype} {packed.shape}")
    pairs: jax.Array = jnp.stack([packed & 15, packed >> 4], axis=-1)
    return pairs.reshape(*packed.shape[:-1], 2 * packed.shape[-1])
