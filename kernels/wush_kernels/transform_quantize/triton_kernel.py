"""Triton kernels: x Tᵀ per block, then MXFP4 (rule `wush`), in one pass over x.

Glossary: a program owns W columns (whole groups of 32, whole blocks of D) and walks down
ROW_TILES tiles of BLOCK_M rows, so that the W x W tile of T is read once. Where W > D the tile of T
is block diagonal: the extra products are with zeros and cost less than narrow memory accesses.

The following hold:

* The scale of a group comes from the exponent bits of its largest magnitude; no log, no division.
* Rounding to E2M1 is two fused multiply-adds: with e the power of two below max(|u|, S), S being
  the group's unit, u + 1.5 2^22 e has a last bit of e / 2, which is the grid's step there. The
  result is never minus zero, and already multiplied with the group's power of two.
* NaN or Inf in a row reaches that row's W columns only.
"""

import triton
import triton.language as tl

_ROUND = tl.constexpr(6291456.0)  # 1.5 * 2^22


@triton.jit
def _transform_tile(t_ptr, first, D: tl.constexpr, W: tl.constexpr, T_STRIDE: tl.constexpr):
    """[W in, W out] tile of Tᵀ whose first column is column ``first`` of x."""
    out = tl.arange(0, W)[:, None]
    inner = tl.arange(0, W)[None, :]
    block = first // D + out // D
    pointers = t_ptr + block * T_STRIDE + (out % D) * D + inner % D
    if W == D:
        t = tl.load(pointers)
    else:
        t = tl.load(pointers, mask=out // D == inner // D, other=0.0)
    return tl.trans(t)


@triton.jit
def _rotate(x, t, TRANSFORM: tl.constexpr, PRECISION: tl.constexpr, MULTIPLIER: tl.constexpr):
    if TRANSFORM:
        if PRECISION == "bf16":
            y = tl.dot(x, t, out_dtype=tl.float32)
        else:
            y = tl.dot(
                x.to(tl.float32), t.to(tl.float32), input_precision=PRECISION, out_dtype=tl.float32
            )
        if MULTIPLIER != 1.0:
            y = y * MULTIPLIER
    else:
        y = x.to(tl.float32)
    return y


@triton.jit
def _round_to_grid(u, unit):
    """Nearest unit * E2M1 value, ties to even, for |u| < 6 unit + a rounding step; NaN stays."""
    larger = tl.maximum(tl.abs(u), unit)
    e = (larger.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    c = tl.full(u.shape, _ROUND, tl.float32)
    return tl.fma(e, -c, tl.fma(e, c, u))


@triton.jit
def _power_of_two(n):
    return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def folded_kernel(
    x_ptr,
    t_ptr,
    shift_ptr,
    M,
    out_ptr,
    K: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROW_TILES: tl.constexpr,
    STAGES: tl.constexpr,
    T_STRIDE: tl.constexpr,
    TRANSFORM: tl.constexpr,
    PRECISION: tl.constexpr,
    MULTIPLIER: tl.constexpr,
    INTERLEAVE: tl.constexpr,
):
    """out[m, k] = element * 2^(byte - 127 + shift); with INTERLEAVE = P, out is [P, M, K / P] and
    column k lies at [k % P, m, k // P]."""
    first = tl.program_id(0) * W
    columns = first + tl.arange(0, W)
    shift = tl.load(shift_ptr)
    if TRANSFORM:
        t = _transform_tile(t_ptr, first, D, W, T_STRIDE)
    else:
        t = 0
    start = tl.program_id(1) * (ROW_TILES * BLOCK_M)
    for i in tl.range(0, ROW_TILES, num_stages=STAGES):
        rows = start + i * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < M)[:, None]
        wide = rows.to(tl.int64)[:, None]
        x = tl.load(x_ptr + wide * K + columns[None, :], mask=mask, other=0.0)
        y = _rotate(x, t, TRANSFORM, PRECISION, MULTIPLIER)
        groups = tl.reshape(y, [BLOCK_M, W // 32, 32])
        magnitude = groups.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        byte = tl.max(magnitude, axis=2, keep_dims=True) >> 23
        # Outside [-40, 20] everything saturates or vanishes in FP8 and in float16 alike.
        exponent = tl.minimum(tl.maximum(byte - 127 + shift, -40), 20)
        factor = tl.minimum(tl.maximum(exponent + 127 - byte, -126), 126)
        three = (((factor + 128) << 23) | 0x00400000).to(tl.float32, bitcast=True)  # 3 * 2^factor
        three = tl.where(byte == 255, float("nan"), three)
        r = _round_to_grid(groups * three, tl.broadcast_to(_power_of_two(exponent), groups.shape))
        r = tl.reshape(r, [BLOCK_M, W])
        if INTERLEAVE == 1:
            target = wide * K + columns[None, :]
        else:
            target = (columns % INTERLEAVE).to(tl.int64)[None, :] * M * (K // INTERLEAVE)
            target += wide * (K // INTERLEAVE) + (columns // INTERLEAVE)[None, :]
        if out_ptr.dtype.element_ty == tl.float16:
            r = tl.minimum(
                tl.maximum(r, -57344.0, tl.PropagateNan.ALL), 57344.0, tl.PropagateNan.ALL
            )
        tl.store(out_ptr + target, r.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def codes_kernel(
    x_ptr,
    t_ptr,
    M,
    codes_ptr,
    scales_ptr,
    K: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    BLOCK_M: tl.constexpr,
    ROW_TILES: tl.constexpr,
    STAGES: tl.constexpr,
    T_STRIDE: tl.constexpr,
    TRANSFORM: tl.constexpr,
    PRECISION: tl.constexpr,
    MULTIPLIER: tl.constexpr,
):
    """Public layout: codes [M, K/2], low nibble = even k; E8M0 bytes [M, K/32], 255 for NaN."""
    first = tl.program_id(0) * W
    columns = first + tl.arange(0, W)
    pairs = first // 2 + tl.arange(0, W // 2)
    group = first // 32 + tl.arange(0, W // 32)
    if TRANSFORM:
        t = _transform_tile(t_ptr, first, D, W, T_STRIDE)
    else:
        t = 0
    start = tl.program_id(1) * (ROW_TILES * BLOCK_M)
    for i in tl.range(0, ROW_TILES, num_stages=STAGES):
        rows = start + i * BLOCK_M + tl.arange(0, BLOCK_M)
        mask = (rows < M)[:, None]
        wide = rows.to(tl.int64)[:, None]
        x = tl.load(x_ptr + wide * K + columns[None, :], mask=mask, other=0.0)
        y = _rotate(x, t, TRANSFORM, PRECISION, MULTIPLIER)
        groups = tl.reshape(y, [BLOCK_M, W // 32, 32])
        magnitude = groups.to(tl.int32, bitcast=True) & 0x7FFFFFFF
        byte = tl.max(magnitude, axis=2, keep_dims=True) >> 23
        # x * 2^(127 - byte) * 3 * 2^-14 by two normal factors: every byte, subnormals included.
        n = 127 - byte
        half = n >> 1
        rest = (((n - half + 114) << 23) | 0x00400000).to(tl.float32, bitcast=True)
        u = (groups * _power_of_two(half)) * rest
        r = _round_to_grid(u, tl.full(u.shape, 6.103515625e-05, tl.float32))  # 2^-14
        # In float16, E2M1 * 2^-14 has the code's sign in bit 15 and its magnitude in bits 11..9.
        h = r.to(tl.float16).to(tl.uint16, bitcast=True)
        code = ((h >> 9) | (h >> 12)) & 15
        code = tl.where(byte == 255, 0, code).to(tl.uint8)
        low, high = tl.split(tl.reshape(code, [BLOCK_M, W // 2, 2]))
        tl.store(codes_ptr + wide * (K // 2) + pairs[None, :], low | (high << 4), mask=mask)
        stored = tl.reshape(byte, [BLOCK_M, W // 32]).to(tl.uint8)
        tl.store(scales_ptr + wide * (K // 32) + group[None, :], stored, mask=mask)
