"""Triton functions: the scale of each group, and its elements in units of that scale.

Groups are float32 [rows, groups, G]; everything of a group is [rows, groups, 1]. *amax* is the
int32 bits of the group's largest magnitude before the ratio, so Inf and NaN are on top; the
format's rule acts on group * ratio. Scales are those of `formats.scales`, bit for bit, where
group * ratio is not subnormal.
"""

import triton
import triton.language as tl

from wush_kernels.transform_quantize.e2m1 import CODE_UNIT, power_of_two, round_to_grid

_INFINITY = tl.constexpr(0x7F800000)
_LARGEST = tl.constexpr(3.4028234663852886e38)  # of float32
_EIGHTH = tl.constexpr(1572864.0)  # 1.5 * 2^20: x + this * e has a last bit of e / 8
_SIXTH = tl.constexpr(0.1666666716337204)  # 1 / 6, rounded


@triton.jit
def magnitude(groups):
    """amax."""
    return tl.max(groups.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=2, keep_dims=True)


@triton.jit
def load_ratio(g_ptr, RATIO: tl.constexpr, BASE: tl.constexpr):
    """RATIO, or BASE / *g_ptr where that is 0."""
    return tl.div_rn(BASE, tl.load(g_ptr)) if RATIO == 0.0 else RATIO


@triton.jit
def _times_ratio(groups, amax, ratio, RATIO: tl.constexpr):
    """group * ratio, which may overflow, and its amax, which does not.

    Rounding is monotone: the largest product is the product with the largest.
    """
    if RATIO != 1.0:
        largest = tl.minimum(amax.to(tl.float32, bitcast=True) * ratio, _LARGEST)
        largest = largest.to(tl.int32, bitcast=True)
        amax = tl.where(amax >= _INFINITY, amax, largest)
        groups = groups * ratio
    return groups, amax


@triton.jit
def _finite(groups, RATIO: tl.constexpr):
    """What a product with the ratio overflowed to is the largest float32."""
    if RATIO == 0.0 or RATIO > 1.0:
        groups = tl.minimum(tl.maximum(groups, -_LARGEST), _LARGEST)
    return groups


@triton.jit
def mxfp4_folded(groups, amax, ratio, shift, RATIO: tl.constexpr):
    """element * 2^(byte - 127 + shift), rule `wush`; NaN in a group that is not finite.

    Outside [-40, 20] the exponent is clamped: there everything vanishes or saturates in FP8 and in
    float16 alike.
    """
    groups, amax = _times_ratio(groups, amax, ratio, RATIO)
    byte = amax >> 23
    exponent = tl.minimum(tl.maximum(byte - 127 + shift, -40), 20)
    factor = tl.minimum(tl.maximum(exponent + 127 - byte, -126), 126)
    three = (((factor + 128) << 23) | 0x00400000).to(tl.float32, bitcast=True)  # 3 * 2^factor
    three = tl.where(byte == 255, float("nan"), three)
    u = _finite(groups, RATIO) * three
    return round_to_grid(u, tl.broadcast_to(power_of_two(exponent), groups.shape))


@triton.jit
def mxfp4_units(groups, amax, ratio, RATIO: tl.constexpr, RULE: tl.constexpr):
    """(element * 2^-14, E8M0 byte); zeros and byte 255 in a group that is not finite.

    The factor 2^(127 - byte) is applied as two normal numbers: every byte, subnormals included.
    """
    groups, amax = _times_ratio(groups, amax, ratio, RATIO)
    byte = amax >> 23
    if RULE == "ocp":
        byte = tl.where(byte == 255, 255, tl.maximum(byte - 2, 0))
    elif RULE == "ceil":
        above = ((amax & 0x007FFFFF) > 0x00400000).to(tl.int32)
        byte = tl.where(byte == 255, 255, tl.maximum(byte - 2 + above, 0))
    n = 127 - byte
    half = n >> 1
    if RULE == "wush":  # 3 * 2^(n - half - 14)
        rest = (((n - half + 114) << 23) | 0x00400000).to(tl.float32, bitcast=True)
    else:
        rest = power_of_two(n - half - 14)
    u = (_finite(groups, RATIO) * power_of_two(half)) * rest
    if RULE == "ocp":
        u = tl.minimum(tl.maximum(u, -6.0 * CODE_UNIT), 6.0 * CODE_UNIT)
    r = round_to_grid(u, tl.full(u.shape, CODE_UNIT, tl.float32))
    return tl.where(byte == 255, 0.0, r), byte


@triton.jit
def e4m3(x):
    """(nearest E4M3 number, its bits) of x >= 0: ties to even, saturating at 448."""
    x = tl.minimum(x, 448.0)
    larger = tl.maximum(x, 0.015625)  # 2^-6, the smallest normal
    e = (larger.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    c = tl.full(x.shape, _EIGHTH, tl.float32)
    value = tl.fma(e, -c, tl.fma(e, c, x))
    normal = (value.to(tl.int32, bitcast=True) >> 20) - 960
    return value, tl.where(value < 0.015625, (value * 512.0).to(tl.int32), normal)


@triton.jit
def _quotient(x, y, inverse, unit):
    """x / y * unit, unit a power of two, given inverse = unit / y to within a few units.

    One correction with the exact remainder. It equals the correctly rounded quotient in all that
    rounding can see: with T a tie of the target grid, it is T where x = T y, and on the same side
    of T as x / y elsewhere. For T y here has at most 7 bits, so it is a float32, and the quotient
    of any other float32 lies further than half a unit from T.
    """
    q = x * inverse
    rest = tl.fma(-q, tl.broadcast_to(y * (1.0 / unit), q.shape), x)
    return tl.fma(rest, tl.broadcast_to(inverse, q.shape), q)


@triton.jit
def nvfp4_units(groups, amax, ratio, RATIO: tl.constexpr, UNIT: tl.constexpr):
    """(element * UNIT, scale, E4M3 bits); zeros, scale NaN and 0x7F in a group that is not finite.

    Values and scales are those of IEEE quotients, amax / 6 and group / scale, see `_quotient`.
    """
    finite = amax < _INFINITY
    groups, amax = _times_ratio(groups, amax, ratio, RATIO)
    largest = amax.to(tl.float32, bitcast=True)
    six = tl.full(largest.shape, 6.0, tl.float32)
    scale, bits = e4m3(_quotient(largest, six, tl.full(largest.shape, _SIXTH, tl.float32), 1.0))
    scale = tl.where(finite, scale, 0.0)
    inverse = tl.where(scale > 0.0, UNIT / scale, 0.0)
    limit = 6.0 * scale
    u = _quotient(tl.minimum(tl.maximum(groups, -limit), limit), scale, inverse, UNIT)
    r = round_to_grid(u, tl.full(u.shape, UNIT, tl.float32))
    r = tl.where(finite, r, 0.0)
    return r, tl.where(finite, scale, float("nan")), tl.where(finite, bits, 0x7F)
