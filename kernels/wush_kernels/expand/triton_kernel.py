"""Triton kernel: packed 4-bit codes and scales to FP8 or bfloat16, bound by memory.

A thread turns WORDS words (8 codes each) of one row into 16 bytes, PIECES times; `expand_ptx` says
how. Consecutive threads read consecutive words, in either layout of `quantized_matmul.layout`.
"""

import triton
import triton.language as tl


@triton.jit
def expand_kernel(
    codes_ptr,
    scales_ptr,
    exponents_ptr,
    out_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    G: tl.constexpr,
    PRIVATE: tl.constexpr,
    WORDS: tl.constexpr,
    PIECES: tl.constexpr,
    WARPS: tl.constexpr,
    TEXT: tl.constexpr,
    BIAS: tl.constexpr,
    SHIFT: tl.constexpr,
):
    """out [rows, K], rows >= N of which are written; exponents: int32, the second is the offset."""
    thread = tl.arange(0, WARPS * 32)
    parts: tl.constexpr = 4 // WORDS  # pieces of a run of 32 codes
    runs: tl.constexpr = K // 32
    pieces: tl.constexpr = N * runs * parts
    size: tl.constexpr = 2 // WORDS  # bytes of a result
    bias = tl.load(exponents_ptr + 1) + BIAS + thread * 0
    # takes 2^(offset + SHIFT), which the float16 numbers carry, out of a bfloat16 result again
    offset = 0 if G == 16 else tl.load(exponents_ptr + 1)
    power = ((127 - SHIFT - offset) << 23) + thread * 0
    factor = power.to(tl.float32, bitcast=True)
    codes = codes_ptr.to(tl.int64) + thread * 0
    out = out_ptr.to(tl.int64) + thread * 0
    start = tl.program_id(0).to(tl.int64) * (WARPS * 32 * PIECES)
    for i in tl.static_range(PIECES):
        piece = start + i * (WARPS * 32) + thread
        run = piece // parts
        part = (piece % parts).to(tl.int32)
        if PRIVATE:
            tile = run // 64
            in_tile = (run % 64).to(tl.int32)
            half = in_tile // 32
            g = in_tile // 4 % 8
            j = in_tile % 4
            row = tile // (K // 128) * 16 + 8 * half + g
            column = (tile % (K // 128)) * 128 + 32 * j + part * (8 * WORDS)
            group = ((tile * 8 + g) * 2 + half) * (128 // G) + j * (32 // G)
        else:
            row = run // runs
            column = (run % runs) * 32 + part * (8 * WORDS)
            group = run * (32 // G)
        group += part * (8 * WORDS) // G
        inside = piece < pieces
        byte = tl.load(scales_ptr + group, mask=inside, other=0).to(tl.int32)
        tl.inline_asm_elementwise(
            TEXT[0],
            TEXT[1],
            [
                codes + piece * (4 * WORDS),
                byte,
                bias,
                out + (row * K + column) * size,
                inside.to(tl.int32),
                factor,
            ],
            tl.int32,
            is_pure=False,
            pack=1,
        )
