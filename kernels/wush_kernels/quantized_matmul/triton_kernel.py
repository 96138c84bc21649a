"""Triton kernel: few tokens times 4-bit weights, read once, bound by memory.

Glossary: a *word* is 8 packed codes (uint32) along K, nibble j holding k = 8 q + j. Activations come
as float16 [8, M, K/8], plane j holding the columns k = 8 q + j, so that plane j meets nibble j and
no value moves between threads. A program owns BLOCK_N outputs and the K tiles p, p + SPLIT, ...

A code `s ee m` put in float16 as s << 15 | eem << 9 is its value times 2^-14, subnormals included;
one float16 product with a power of two then gives value * 2^exponent exactly.
"""

import triton
import triton.language as tl

# Two words of one row and their two multipliers (float16) -> 8 pairs of float16.
DECODE = tl.constexpr("""{
.reg .b32 t, a, b;
prmt.b32 t, $8, $9, 0x5410;
shl.b32 a, t, 9;   and.b32 a, a, 0x0E000E00;  shl.b32 b, t, 12;
lop3.b32 a, a, b, 0x80008000, 0xF8;  mul.f16x2 $0, a, $10;
shl.b32 a, t, 5;   and.b32 a, a, 0x0E000E00;  shl.b32 b, t, 8;
lop3.b32 a, a, b, 0x80008000, 0xF8;  mul.f16x2 $1, a, $10;
shl.b32 a, t, 1;   and.b32 a, a, 0x0E000E00;  shl.b32 b, t, 4;
lop3.b32 a, a, b, 0x80008000, 0xF8;  mul.f16x2 $2, a, $10;
shr.u32 a, t, 3;   and.b32 a, a, 0x0E000E00;
lop3.b32 a, a, t, 0x80008000, 0xF8;  mul.f16x2 $3, a, $10;
prmt.b32 t, $8, $9, 0x7632;
shl.b32 a, t, 9;   and.b32 a, a, 0x0E000E00;  shl.b32 b, t, 12;
lop3.b32 a, a, b, 0x80008000, 0xF8;  mul.f16x2 $4, a, $10;
shl.b32 a, t, 5;   and.b32 a, a, 0x0E000E00;  shl.b32 b, t, 8;
lop3.b32 a, a, b, 0x80008000, 0xF8;  mul.f16x2 $5, a, $10;
shl.b32 a, t, 1;   and.b32 a, a, 0x0E000E00;  shl.b32 b, t, 4;
lop3.b32 a, a, b, 0x80008000, 0xF8;  mul.f16x2 $6, a, $10;
shr.u32 a, t, 3;   and.b32 a, a, 0x0E000E00;
lop3.b32 a, a, t, 0x80008000, 0xF8;  mul.f16x2 $7, a, $10;
}""")


@triton.jit
def _tile_product(acc, x, w, SWAP: tl.constexpr):
    if SWAP:
        acc = tl.dot(tl.trans(w), tl.trans(x), acc)
    else:
        acc = tl.dot(x, w, acc)
    return acc


@triton.jit
def decode_kernel(
    x_ptr,
    codes_ptr,
    scales_ptr,
    offset_ptr,
    factor_ptr,
    M,
    out_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    SWAP: tl.constexpr,
):
    """out [SPLIT, M, N]; with SPLIT 1 times the factor, in out's dtype; else float32 sums.

    SWAP computes the transposed tile, weights as the first operand."""
    Q: tl.constexpr = BLOCK_K // 8
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    part = tl.program_id(1)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    q = tl.arange(0, Q)
    n_mask = (n < N)[None, :]
    row = tl.minimum(n, N - 1)[None, :]
    words_ptr = codes_ptr.to(tl.pointer_type(tl.uint32)) + row * (K // 8) + q[:, None]
    scale_ptr = scales_ptr + row * (K // 32) + (q // 4)[:, None]
    a_ptr = x_ptr + m[:, None] * (K // 8) + q[None, :]
    m_mask = (m < M)[:, None]
    plane = M * (K // 8)
    bias = tl.load(offset_ptr) - 103  # byte - 127 + offset + 24: float16 exponent of 2^(9 + E)
    if SWAP:
        acc = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    else:
        acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for tile in tl.range(part, tl.cdiv(K, BLOCK_K), SPLIT, num_stages=STAGES):
        at = tile * Q
        if K % BLOCK_K == 0:
            inside = n_mask
            a_mask = m_mask
        else:
            inside = n_mask & (at + q < K // 8)[:, None]
            a_mask = m_mask & (at + q < K // 8)[None, :]
        words = tl.load(words_ptr + at, mask=inside, other=0)
        byte = tl.load(scale_ptr + at // 4, mask=inside, other=0).to(tl.int32)
        e = tl.minimum(tl.maximum(byte + bias, 0), 30)
        multiplier = (e << 10).to(tl.uint16).to(tl.float16, bitcast=True)
        w0, w1, w2, w3, w4, w5, w6, w7 = tl.inline_asm_elementwise(
            DECODE,
            "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r",
            [words, multiplier],
            dtype=(
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
                tl.float16,
            ),
            is_pure=True,
            pack=2,
        )
        acc = _tile_product(acc, tl.load(a_ptr + at, mask=a_mask, other=0.0), w0, SWAP)
        acc = _tile_product(acc, tl.load(a_ptr + plane + at, mask=a_mask, other=0.0), w1, SWAP)
        acc = _tile_product(acc, tl.load(a_ptr + 2 * plane + at, mask=a_mask, other=0.0), w2, SWAP)
        acc = _tile_product(acc, tl.load(a_ptr + 3 * plane + at, mask=a_mask, other=0.0), w3, SWAP)
        acc = _tile_product(acc, tl.load(a_ptr + 4 * plane + at, mask=a_mask, other=0.0), w4, SWAP)
        acc = _tile_product(acc, tl.load(a_ptr + 5 * plane + at, mask=a_mask, other=0.0), w5, SWAP)
        acc = _tile_product(acc, tl.load(a_ptr + 6 * plane + at, mask=a_mask, other=0.0), w6, SWAP)
        acc = _tile_product(acc, tl.load(a_ptr + 7 * plane + at, mask=a_mask, other=0.0), w7, SWAP)
    if SPLIT == 1:
        acc = acc * tl.load(factor_ptr)
    if SWAP:
        acc = tl.trans(acc)
    target = out_ptr + part * M * N + m[:, None] * N + n[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=m_mask & (n < N)[None, :])
