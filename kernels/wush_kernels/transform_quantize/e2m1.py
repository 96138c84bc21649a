"""Triton functions: rounding to the E2M1 grid and its codes."""

import triton
import triton.language as tl

_ROUND = tl.constexpr(6291456.0)  # 1.5 * 2^22
ONE = tl.constexpr(1.0)
CODE_UNIT = tl.constexpr(6.103515625e-05)  # 2^-14, see `codes`


@triton.jit
def power_of_two(n):
    """2^n, float32, for n in [-126, 127]."""
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def round_to_grid(u, unit):
    """Nearest unit * E2M1 value, ties to the even code, for |u| <= 6 unit; unit a power of two.

    Two fused multiply-adds: with e the power of two below max(|u|, unit), u + 1.5 2^22 e has a last
    bit of e / 2, which is the grid's step there. The result is never minus zero; NaN stays NaN.
    """
    larger = tl.maximum(tl.abs(u), unit)
    e = (larger.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    c = tl.full(u.shape, _ROUND, tl.float32)
    return tl.fma(e, -c, tl.fma(e, c, u))


@triton.jit
def codes(r):
    """Codes 0..15, uint16, of r = E2M1 value * CODE_UNIT.

    In float16 such a number has the code's sign in bit 15 and its magnitude in bits 11..9.
    """
    h = r.to(tl.float16).to(tl.uint16, bitcast=True)
    return ((h >> 9) | (h >> 12)) & 15
