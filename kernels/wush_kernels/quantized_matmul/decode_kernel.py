"""Triton kernel: few tokens times 4-bit weights, read once.

A program owns 16 ROWS outputs and 8 BLOCKS tokens; its WARPS warps deal out the tiles of K among
themselves, and add up their sums at the end. Tensors of exactly one element a thread carry what a
CUDA thread would hold in registers; `decode_ptx` writes what each warp does with a tile.
"""

import triton
import triton.language as tl


@triton.jit
def decode_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    exponents_ptr,
    first_scale_ptr,
    second_scale_ptr,
    out_ptr,
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
    WARPS: tl.constexpr,
    ZEROS: tl.constexpr,
    LOAD: tl.constexpr,
    STEP: tl.constexpr,
    REDUCE: tl.constexpr,
    BIAS: tl.constexpr,
    FACTOR: tl.constexpr,
    TWO_SCALES: tl.constexpr,
):
    """out [M, N].

    exponents: (shift, offset) of activations and weights; the result is multiplied with
    2^-(shift + offset), with FACTOR and with the scales.

    ZEROS, LOAD, STEP, REDUCE: (text, constraints, number of outputs)."""
    thread = tl.arange(0, WARPS * 32)
    lane = thread % 32
    g = lane // 4
    j = lane % 4
    warp = thread // 32
    row = tl.program_id(0) * (16 * ROWS) + g
    token = tl.program_id(1) * (8 * BLOCKS)
    tiles: tl.constexpr = (K + 127) // 128
    tile = warp
    count: tl.constexpr = 4 * ROWS * BLOCKS
    loaded: tl.constexpr = LOAD[2]
    results: tl.constexpr = REDUCE[2]
    same = thread * 0
    x = x_ptr.to(tl.int64) + same
    codes = codes_ptr.to(tl.int64) + same
    scales = scales_ptr.to(tl.int64) + same
    bias = tl.load(exponents_ptr + 1) + BIAS + same
    acc = tl.inline_asm_elementwise(
        ZEROS[0], ZEROS[1], [same], (tl.float32,) * count, is_pure=True, pack=1
    )
    last: tl.constexpr = tiles - 1
    words = tl.inline_asm_elementwise(
        LOAD[0],
        LOAD[1],
        [codes, scales, row, tl.minimum(tile, last), j, lane],
        (tl.int32,) * loaded,
        is_pure=True,
        pack=1,
    )
    for _ in range(0, tl.cdiv(tiles, WARPS)):
        ahead = tl.inline_asm_elementwise(
            LOAD[0],
            LOAD[1],
            [codes, scales, row, tl.minimum(tile + WARPS, last), j, lane],
            (tl.int32,) * loaded,
            is_pure=True,
            pack=1,
        )
        acc = tl.inline_asm_elementwise(
            STEP[0],
            STEP[1],
            acc + words + (x, token + g, tile, j, bias),
            (tl.float32,) * count,
            is_pure=True,
            pack=1,
        )
        words = ahead
        tile += WARPS
    factor = FACTOR * tl.load(first_scale_ptr)
    if TWO_SCALES:
        factor = factor * tl.load(second_scale_ptr)
    power = 127 - tl.load(exponents_ptr) - tl.load(exponents_ptr + 1)
    factor = factor * (power << 23).to(tl.float32, bitcast=True)
    own = (warp, lane)
    sums = tl.inline_asm_elementwise(
        REDUCE[0],
        REDUCE[1],
        acc + own,
        (tl.float32,) * results,
        is_pure=False,
        pack=1,
    )
    for o in tl.static_range(results):
        i = o * WARPS + warp  # which accumulator's sum this thread holds
        m = token + 8 * (i // 4 % BLOCKS) + 2 * j + i % 2
        n = row + 16 * (i // (4 * BLOCKS)) + 8 * (i // 2 % 2)
        total = sums[o] * factor
        mask = (i < count) & (m < M) & (n < N)
        tl.store(out_ptr + m * N + n, total.to(out_ptr.dtype.element_ty), mask=mask)
