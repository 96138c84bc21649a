"""PTX of the few-token product: what one warp does with a tile, as text for inline assembly.

Glossary: a *tile* is 128 of K. Lane l = 4 g + j of a warp reads, for weight rows g and g + 8 of
each 16-row block, the 16 bytes of group j of the tile (4 words of 8 codes), and for token g of each
8-token block the same 32 columns. Which of its columns a lane hands to which k slot of the tensor
core instruction is free, as long as both operands agree; so nothing moves between lanes.
"""

from __future__ import annotations

from wush_kernels.words_ptx import (
    PRIVATE,
    PUBLIC,
    block,
    decode,
    mxfp4_multiplier,
    nvfp4_multiplier,
    outputs,
)

TILE = 128  # columns a warp takes at once


def load(rows: int, N: int, K: int, private: bool, nvfp4: bool) -> tuple[tuple[str, str], int]:
    """Weights of a tile: 4 words and the scale bytes for each of 2 ``rows`` weight rows.

    Operands: outputs 10 rows words (nvfp4: 12); codes and scales addresses, the lane's first row,
    the tile, j, the lane. Rows and groups beyond the end repeat the last one.
    """
    per_row = 6 if nvfp4 else 5
    count = 2 * rows * per_row
    where = tuple(f"${count + i}" for i in range(6))
    body = []
    for r in range(rows):
        words = [[f"${(2 * r + h) * per_row + n}" for n in range(per_row)] for h in range(2)]
        if private:
            body += _load_private(words, r, K, *where)
        else:
            for h in range(2):
                body += _load_public(words[h], 16 * r + 8 * h, N, K, 16 * rows, *where)
    registers = {"b32": "at, group, block", "b64": "p, q", "b16": "short"}
    return (block(body, registers), outputs("r", count) + ",l,l,r,r,r,r"), count


def _load_private(words, r, K, codes, scales, row, tile, j, lane) -> list[str]:
    """Rows g and g + 8 of 16-row block r, in the order of `layout`."""
    low, high = words
    half = len(low) - 4  # words of scales a row
    scale_words = ", ".join(low[4:] + high[4:])
    return [
        f"shr.u32 block, {row}, 4;",
        f"add.s32 block, block, {r};",
        f"mad.lo.s32 block, block, {K // TILE}, {tile};",
        f"mad.lo.s32 at, block, 64, {lane};",
        f"mad.wide.u32 p, at, 16, {codes};",
        f"ld.global.nc.L1::no_allocate.v4.b32 {{{', '.join(low[:4])}}}, [p];",
        f"ld.global.nc.L1::no_allocate.v4.b32 {{{', '.join(high[:4])}}}, [p+512];",
        f"and.b32 at, {row}, 7;",
        "mad.lo.s32 at, block, 8, at;",
        f"mad.wide.u32 p, at, {8 * half}, {scales};",
        f"ld.global.nc.L1::no_allocate.v{2 * half}.b32 {{{scale_words}}}, [p];",
    ]


def _load_public(words, offset, N, K, rows, codes, scales, row, tile, j, lane) -> list[str]:
    """The lane's row plus ``offset``; ``rows`` a warp."""
    half = len(words) - 4
    body = [f"add.s32 at, {row}, {offset};", f"mad.lo.s32 group, {tile}, 4, {j};"]
    if N % rows:
        body.append(f"min.s32 at, at, {N - 1};")
    if K % TILE:
        body.append(f"min.s32 group, group, {K // 32 - 1};")
    body += [
        f"mad.wide.u32 p, at, {K // 2}, {codes};",
        "mul.wide.u32 q, group, 16;",
        "add.s64 p, p, q;",
        f"ld.global.nc.L1::no_allocate.v4.b32 {{{', '.join(words[:4])}}}, [p];",
        f"mad.wide.u32 p, at, {K // 32 * half}, {scales};",
    ]
    if K % TILE:  # the lane's bytes alone: rows need not be aligned
        body += [f"mul.wide.u32 q, group, {half};", "add.s64 p, p, q;"]
        if half == 2:
            return [
                *body,
                "ld.global.nc.u16 short, [p];",
                f"cvt.u32.u16 {words[4]}, short;",
                f"mov.b32 {words[5]}, 0;",
            ]
        return [*body, "ld.global.nc.u8 short, [p];", f"cvt.u32.u16 {words[4]}, short;"]
    body += [f"mul.wide.u32 q, {tile}, {4 * half};", "add.s64 p, p, q;"]
    vector = f"v{half}." if half == 2 else ""
    return [*body, f"ld.global.nc.{vector}b32 {{{', '.join(words[4:])}}}, [p];"]


def step(
    rows: int,
    blocks: int,
    M: int,
    K: int,
    private: bool,
    nvfp4: bool,
    half: bool,
    ragged: bool,
) -> tuple[str, str]:
    """acc += weights x activations for one tile.

    Operands: 4 rows blocks accumulators out, as many in, the words of `load`, the activations'
    address, the lane's first token, the tile, j, the exponent bias (mxfp4).
    """
    per_row = 6 if nvfp4 else 5
    accumulators = 4 * rows * blocks
    words = 2 * rows * per_row
    words_a_token = 16 if half else 8
    at = 2 * accumulators
    x, token, tile, j, bias = (f"${at + words + i}" for i in range(5))
    body = [f"mov.f32 ${i}, ${accumulators + i};" for i in range(accumulators)]
    body.append(f"mad.lo.s32 group, {tile}, 4, {j};")
    if ragged:
        body.append(f"setp.lt.s32 valid, group, {K // 32};")
    body += _activation_addresses(blocks, M, K, words_a_token // 8, x, token)
    body.append(f"add.s32 sel, {j}, 0x4440;")
    if nvfp4:
        body += [*_nvfp4_selectors(K % TILE != 0, j), "mov.b32 big, 0x78007800;"]
    for i in range(2 * rows):
        scale = at + i * per_row + 4
        body += (
            _nvfp4_multipliers(i, scale, ragged)
            if nvfp4
            else _mxfp4_multiplier(i, f"${scale}", bias, K % TILE != 0, ragged)
        )
    order = PRIVATE if private else PUBLIC
    for s in range(4):
        if half or s % 2 == 0:  # no sooner: registers are short
            body += _activation_loads(blocks, s if half else s // 2)
        for i in range(2 * rows):
            multiplier = f"m{i}_{s // 2}" if nvfp4 else f"m{i}"
            body += decode(f"${at + i * per_row + s}", f"a{i}_", multiplier, order)
        for h in range(2):  # outermost, so that an instruction does not wait for the one before
            for b in range(blocks):
                body += _activations(b, s, h, half, private)
                body += [_mma(4 * (r * blocks + b), r, h) for r in range(rows)]
    registers = {
        "b32": ", ".join(
            ["group", "sel", "sel0", "sel1", "big", "t", "u", "b0", "b1"]
            + [f"y{b}_{n}" for b in range(blocks) for n in range(words_a_token)]
            + [f"m{i}" for i in range(2 * rows)]
            + [f"m{i}_{n}" for i in range(2 * rows) for n in range(2)]
            + [f"a{i}_{n}" for i in range(2 * rows) for n in range(4)]
        ),
        "b64": ", ".join(["q", *(f"p{b}" for b in range(blocks))]),
        "pred": "valid",
    }
    constraints = [outputs("f", accumulators), ",".join(["f"] * accumulators)]
    constraints += [",".join(["r"] * words), "l,r,r,r,r"]
    return block(body, registers), ",".join(constraints)


def _mxfp4_multiplier(i: int, scale: str, bias: str, single: bool, ragged: bool) -> list[str]:
    """m<i> for row i, from the lane's byte of a word of scales (or the ``single`` byte)."""
    body = [] if single else [f"prmt.b32 u, {scale}, 0, sel;"]
    body += mxfp4_multiplier(f"m{i}", scale if single else "u", bias)
    return [*body, f"selp.b32 m{i}, m{i}, 0, valid;"] if ragged else body


def _nvfp4_selectors(single: bool, j: str) -> list[str]:
    """PRMT selectors that put the lane's scale byte 0 or 1 into bytes 0 and 2."""
    if single:
        return ["mov.b32 sel0, 0x0000;", "mov.b32 sel1, 0x0101;"]
    return [f"mul.lo.s32 sel0, {j}, 0x0202;", "add.s32 sel1, sel0, 0x0101;"]


def _nvfp4_multipliers(i: int, scale: int, ragged: bool) -> list[str]:
    """m<i>_0 and m<i>_1 for the lane's two groups of 16 of row i."""
    body = []
    for n in range(2):
        body += nvfp4_multiplier(f"m{i}_{n}", f"${scale}", f"${scale + 1}", f"sel{n}")
        if ragged:
            body.append(f"selp.b32 m{i}_{n}, m{i}_{n}, 0, valid;")
    return body


def _activation_addresses(blocks: int, M: int, K: int, size: int, x: str, token: str) -> list[str]:
    """p0, p1, ...: the lane's 32 columns, of ``size`` bytes each, of its token of each block."""
    body = [
        f"min.s32 u, group, {K // 32 - 1};",
        f"mul.wide.u32 q, u, {32 * size};",
        f"add.s64 q, q, {x};",
    ]
    for b in range(blocks):
        body += [f"add.s32 t, {token}, {8 * b};", f"min.s32 t, t, {M - 1};"]
        body.append(f"mad.wide.u32 p{b}, t, {K * size}, q;")
    return body


def _activation_loads(blocks: int, part: int) -> list[str]:
    """16 bytes of each token, into y<block>_<word>."""
    body = []
    for b in range(blocks):
        names = ", ".join(f"y{b}_{4 * part + n}" for n in range(4))
        body.append(f"ld.global.nc.v4.b32 {{{names}}}, [p{b}+{16 * part}];")
    return body


def _activations(b: int, s: int, h: int, half: bool, private: bool) -> list[str]:
    """b0, b1: float16 pairs 2 h, 2 h + 1 of a token's columns 8 s .. 8 s + 7."""
    if half:
        y = [f"y{b}_{4 * s + n}" for n in range(4)]
        if private:
            return [f"mov.b32 b{n}, {y[2 * h + n]};" for n in range(2)]
        # pairs (i, i + 4): low halves of words 0 and 2, then high halves; then of words 1 and 3
        return [f"prmt.b32 b{n}, {y[h]}, {y[h + 2]}, {(0x5410, 0x7632)[n]:#x};" for n in range(2)]
    low, high = f"y{b}_{2 * s}", f"y{b}_{2 * s + 1}"
    if private:  # an E5M2 byte is the upper byte of its float16
        y = high if h else low
        return [f"prmt.b32 b0, {y}, 0, 0x1404;", f"prmt.b32 b1, {y}, 0, 0x3424;"]
    body = []
    for n in range(2):
        k = 2 * h + n
        body.append(f"prmt.b32 b{n}, {low}, {high}, {k << 4 | (k + 4) << 12:#x};")
        body.append(f"and.b32 b{n}, b{n}, 0xFF00FF00;")
    return body


def _mma(acc: int, r: int, h: int) -> str:
    """m16n8k16: rows g and g + 8 of block r, pairs 2 h and 2 h + 1."""
    out = ", ".join(f"${acc + n}" for n in range(4))
    low, high = f"a{2 * r}_", f"a{2 * r + 1}_"
    a = f"{low}{2 * h}, {high}{2 * h}, {low}{2 * h + 1}, {high}{2 * h + 1}"
    return (
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        f"{{{out}}}, {{{a}}}, {{b0, b1}}, {{{out}}};"
    )
