"""Group scales: from the statistic of a group to the bits stored for it, and back.

Exponents are handled as integers, on the bits of a float32, because XLA flushes subnormal floats to
zero on some backends: a comparison, a `max` or a `log2` of one cannot be trusted, its bits can.

References: OCP Microscaling Formats (MX) v1.0 (E8M0, E4M3, the `ocp` rule); arXiv 2512.00956 (the
`wush` rules).
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, BFloat16, Float32, Int32, UInt8

E4M3_MAX = 448.0
E4M3_NAN = 0x7F
E8M0_NAN = 255
INFINITY_BITS = 0x7F800000  # absolute bits from here up are Inf or NaN
SMALLEST_NORMAL = 2.0**-126
_NUDGE = 2.0**-18  # more than a rounding error of numbers up to 8, far less than the grid's steps

# Step of the 16-level mid-rise quantizer that suits N(0, 1): its outermost levels are +-2.5139.
GAUSSIAN_STEP = 2.5139 * 2 / 15

_MANTISSA = 0x007FFFFF


def magnitude_bits(x: Float32[Array, "*s"]) -> Int32[Array, "*s"]:
    """Bits of |x| as int32: ordered as |x| is, subnormals included, Inf then NaN on top."""
    return lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF


def power_of_two(n: Int32[Array, "*s"]) -> Float32[Array, "*s"]:
    """2^n, float32, for n in [-126, 127]."""
    return lax.bitcast_convert_type((n + 127) << 23, jnp.float32)


def scale_by_power_of_two(x: Float32[Array, "*s"], n: Int32[Array, "*#s"]) -> Float32[Array, "*s"]:
    """x * 2^n, float32: exact for every x, subnormals too, and |n| <= 254, if the result is normal.

    A subnormal is read as its integer mantissa times 2^-149. Results below 2^-126 may flush to 0.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32)
    subnormal = (bits & INFINITY_BITS) == 0
    mantissa = (bits & _MANTISSA).astype(jnp.float32)
    x = jnp.where(subnormal, jnp.where(bits < 0, -mantissa, mantissa), x)
    n = jnp.where(subnormal, n - 149, n)
    for _ in range(3):  # each factor is a normal float32, and three reach every n
        part = jnp.clip(n, -126, 127)
        x, n = x * power_of_two(part), n - part
    return x


def split_exponent(x: Float32[Array, "*s"]) -> tuple[Float32[Array, "*s"], Int32[Array, "*s"]]:
    """(m, e) with x = m 2^e and m in [1, 2), for positive normal x."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return lax.bitcast_convert_type((bits & _MANTISSA) | 0x3F800000, jnp.float32), (
        bits >> 23
    ) - 127


def times(x: Float32[Array, "*s"], factor: Float32[Array, "*#s"]) -> Float32[Array, "*s"]:
    """x * factor, subnormal x included, for positive normal factors; finite x stays finite."""
    m, e = split_exponent(factor)
    largest = float(jnp.finfo(jnp.float32).max)
    product = jnp.clip(scale_by_power_of_two(x, e) * m, -largest, largest)
    return jnp.where(jnp.isfinite(x), product, jnp.nan)


def quotient(x: Float32[Array, "*s"], constant: float) -> Float32[Array, "*s"]:
    """x / constant for finite x: correctly rounded on CPU, within one unit elsewhere.

    XLA turns division by a constant into a product with its rounded reciprocal, often one unit
    off; it cannot when the divisor depends on x.
    """
    return x / (0.0 * x + constant)


# E8M0: a byte b stands for 2^(b - 127); 255 is NaN.


def e8m0_from_magnitude(amax: Int32[Array, "*s"], rule: str) -> UInt8[Array, "*s"]:
    """Scale byte of a group from `magnitude_bits` of its largest element; NaN if not finite.

    Rule `wush`: floor(log2 amax); `ocp`: two less; `ceil`: the smallest power of two s with
    amax <= 6 s. Clamped to bytes 0..254, so a zero or subnormal amax gives byte 0.
    """
    byte = amax >> 23
    if rule == "ocp":
        byte = byte - 2
    elif rule == "ceil":
        byte = byte - 2 + ((amax & _MANTISSA) > 0x00400000).astype(jnp.int32)
    byte = jnp.clip(byte, 0, 254)
    return jnp.where(amax < INFINITY_BITS, byte, E8M0_NAN).astype(jnp.uint8)


def e8m0_decode(scales: UInt8[Array, "*s"]) -> Float32[Array, "*s"]:
    """float32 scales of E8M0 bytes. Byte 0 is 2^-127, a subnormal: arithmetic may flush it."""
    byte = scales.astype(jnp.int32)
    bits = jnp.where(byte == 0, 0x00400000, byte << 23)
    return lax.bitcast_convert_type(jnp.where(byte == E8M0_NAN, 0x7FC00000, bits), jnp.float32)


def times_e8m0(x: Float32[Array, "*s"], scales: UInt8[Array, "*#s"]) -> Float32[Array, "*s"]:
    """x times the E8M0 scales: exact for normal x if the result is normal, byte 0 included."""
    n = scales.astype(jnp.int32) - 127
    first = jnp.where(n == 128, jnp.nan, power_of_two(n >> 1))
    return x * first * power_of_two(n - (n >> 1))


# E4M3 (the "fn" kind: no infinity, largest 448, 0x7F is NaN), sign never set here.


def e4m3_from_float(x: Float32[Array, "*s"]) -> UInt8[Array, "*s"]:
    """E4M3 bits of non-negative x: nearest, ties to even, saturating at 448; NaN gives 0x7F."""
    clipped = jnp.minimum(x, E4M3_MAX)
    exponent = jnp.maximum((magnitude_bits(clipped) >> 23) - 127, -6)
    steps = jnp.round(clipped * power_of_two(3 - exponent)).astype(jnp.int32)
    code = (
        8 * (exponent + 6) + steps
    )  # a carry out of the mantissa lands in the exponent, as it should
    return jnp.where(jnp.isnan(x), E4M3_NAN, code).astype(jnp.uint8)


def e4m3_decode(scales: UInt8[Array, "*s"]) -> Float32[Array, "*s"]:
    """float32 values of E4M3 bits, all 256 of them."""
    bits = scales.astype(jnp.int32)
    exponent, mantissa = (bits >> 3) & 15, bits & 7
    significand = jnp.where(exponent == 0, mantissa, mantissa | 8)
    value = significand.astype(jnp.float32) * power_of_two(jnp.maximum(exponent, 1) - 10)
    value = jnp.where((bits & E4M3_NAN) == E4M3_NAN, jnp.nan, value)
    return jnp.where(bits > 127, -value, value)


# The three scale types at work: float32 groups [..., G] to values in units of the element grid, and
# the scales to store.


def divide_e8m0(
    groups: Float32[Array, "*s G"], rule: str, grid_unit: float
) -> tuple[Float32[Array, "*s G"], UInt8[Array, "*s"]]:
    """(x / scale * grid_unit, E8M0 scales); zeros in a group that is not finite.

    grid_unit is 1 over the rule's global scale.
    """
    stored = e8m0_from_magnitude(jnp.max(magnitude_bits(groups), axis=-1), rule)
    n = 127 - stored.astype(jnp.int32)
    v = scale_by_power_of_two(groups, n[..., None]) * grid_unit
    return jnp.where((stored == E8M0_NAN)[..., None], 0.0, v), stored


def divide_e4m3(
    groups: Float32[Array, "*s G"], grid_max: float
) -> tuple[Float32[Array, "*s G"], UInt8[Array, "*s"]]:
    """(x / scale, E4M3 scales of amax / grid_max); zeros where the scale is zero or NaN."""
    amax = lax.bitcast_convert_type(jnp.max(magnitude_bits(groups), axis=-1), jnp.float32)
    stored = e4m3_from_float(quotient(amax, grid_max))
    scale = e4m3_decode(stored)[..., None]
    return jnp.where(scale > 0, _on_the_right_side(groups / scale, groups, scale), 0.0), stored


def _on_the_right_side(
    quotient: Float32[Array, "*s"], x: Float32[Array, "*s"], scale: Float32[Array, "*#s"]
) -> Float32[Array, "*s"]:
    """``quotient`` ~ x / scale, moved to the side of the E2M1 grid's ties where x / scale lies.

    XLA divides inexactly on some backends, and by a broadcast number on all of them. Ties are
    multiples of a quarter, and a multiple times an E4M3 scale is exact.
    """
    tie = jnp.round(4 * quotient) / 4
    at = tie * scale
    above, below = jnp.maximum(quotient, tie + _NUDGE), jnp.minimum(quotient, tie - _NUDGE)
    return jnp.where(x == at, tie, jnp.where(x > at, above, jnp.where(x < at, below, quotient)))


def divide_bf16(
    groups: Float32[Array, "*s G"], limit: float | None
) -> tuple[Float32[Array, "*s G"], BFloat16[Array, "*s"]]:
    """(x / scale, bf16 scales); zeros where the scale is zero or NaN.

    limit None: the scale is the Gaussian-MSE step times the root mean square; else amax / limit. It
    is rounded to nearest even and, in a group that is not all zero, no smaller than 2^-126: never
    subnormal.
    """
    amax = jnp.max(magnitude_bits(groups), axis=-1)
    exponent = jnp.maximum(amax >> 23, 1) - 127
    finite = amax < INFINITY_BITS
    y = scale_by_power_of_two(groups, -exponent[..., None])
    y = jnp.where(finite[..., None], y, 0.0)  # |y| < 2: nothing overflows or underflows from here
    if limit is None:
        scale = GAUSSIAN_STEP * jnp.sqrt(sum_of_squares(y) * (1.0 / y.shape[-1]))
    else:
        scale = quotient(jnp.max(jnp.abs(y), axis=-1), limit)
    # reduce_precision, as XLA may drop a conversion to bf16 and back
    scale = scale_by_power_of_two(lax.reduce_precision(scale, 8, 7), exponent)
    scale = jnp.where(amax > 0, jnp.maximum(scale, SMALLEST_NORMAL), 0.0)
    unit = scale_by_power_of_two(scale, -exponent)[..., None]
    stored = jnp.where(finite, scale, jnp.nan).astype(jnp.bfloat16)
    return jnp.where(unit > 0, y / unit, 0.0), stored


def sum_of_squares(y: Float32[Array, "*s G"]) -> Float32[Array, "*s"]:
    """Sum of y^2 over the last axis: the same float32 bits in whatever program it is compiled into.

    A compiler may contract a product and a sum into one rounding, or not. Splitting y into two
    12-bit halves makes every product exact, so that this changes nothing; the sums are a tree
    written out. G is a power of two.
    """
    high = lax.bitcast_convert_type(lax.bitcast_convert_type(y, jnp.int32) & ~0xFFF, jnp.float32)
    low = y - high
    total = high * high + ((2.0 * high) * low + low * low)
    while total.shape[-1] > 1:
        half = total.shape[-1] // 2
        total = total[..., :half] + total[..., half:]
    return total[..., 0]
