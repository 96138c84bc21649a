"""Triton kernel: packed MXFP4 codes and E8M0 scales -> E4M3, bound by memory.

Glossary: a *word* is 8 packed codes (uint32); a group is 4 words and one scale byte. PRMT picks
four bytes out of an eight-byte table by four nibbles, so the eight E4M3 bytes of {0, .5, 1, 1.5,
2, 3, 4, 6} * 2^E, looked up once a group, turn half a word of codes into four values in one
instruction; a second PRMT spreads the signs.
"""

import triton
import triton.language as tl

EXPAND = tl.constexpr("""{
.reg .b32 h, m, s, a, b;
shr.u32 h, $1, 16;
and.b32 m, $1, 0x7777;
shr.u32 s, $1, 3;
and.b32 s, s, 0x1111;
prmt.b32 a, $2, $3, m;
prmt.b32 s, 0x8000, 0, s;
or.b32 a, a, s;
and.b32 m, h, 0x7777;
shr.u32 s, h, 3;
and.b32 s, s, 0x1111;
prmt.b32 b, $2, $3, m;
prmt.b32 s, 0x8000, 0, s;
or.b32 b, b, s;
mov.b64 $0, {a, b};
}""")


@triton.jit
def expand_kernel(
    codes_ptr, scales_ptr, table_ptr, offset_ptr, groups, out_ptr, BLOCK: tl.constexpr
):
    """out (E4M3 bytes, flat) of ``groups`` groups; table: uint32 [64, 2], see `api`."""
    g = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = g < groups
    scale = tl.load(scales_ptr + g, mask=mask, other=0).to(tl.int32)
    exponent = scale + tl.load(offset_ptr) - 127
    index = tl.minimum(tl.maximum(exponent, -31), 31) + 31
    index = tl.where(scale == 255, 63, index)
    low = tl.load(table_ptr + 2 * index)
    high = tl.load(table_ptr + 2 * index + 1)
    word = g[:, None] * 4 + tl.arange(0, 4)[None, :]
    words = tl.load(codes_ptr.to(tl.pointer_type(tl.uint32)) + word, mask=mask[:, None], other=0)
    low = tl.broadcast_to(low[:, None], words.shape)
    high = tl.broadcast_to(high[:, None], words.shape)
    out = tl.inline_asm_elementwise(
        EXPAND, "=l,r,r,r", [words, low, high], dtype=tl.uint64, is_pure=True, pack=1
    )
    tl.store(out_ptr.to(tl.pointer_type(tl.uint64)) + word, out, mask=mask[:, None])
