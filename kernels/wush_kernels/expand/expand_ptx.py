"""PTX of the expansion: a thread's few words of codes to FP8 or bfloat16, as inline assembly.

The codes become float16 as in `words_ptx`, exactly, and the conversion instructions do the rest.
"""

from __future__ import annotations

from wush_kernels.words_ptx import (
    PRIVATE,
    PUBLIC,
    block,
    decode,
    mxfp4_multiplier,
    nvfp4_multiplier,
)

# Words of codes a thread turns into one 16-byte store.
WORDS = {"float8_e4m3fn": 2, "float8_e5m2": 2, "bfloat16": 1}
_FP8 = {"float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2"}


def expand(dtype: str, private: bool, nvfp4: bool) -> tuple[str, str]:
    """Operands: a zero out; the codes' address, the scale byte, the exponent bias (mxfp4), the
    result's address, whether to do anything, and the float32 factor of a bfloat16 result."""
    words = WORDS[dtype]
    body = ["mov.b32 $0, 0;", "setp.ne.s32 inside, $5, 0;"]
    names = ", ".join(f"w{i}" for i in range(words))
    vector = f"v{words}." if words > 1 else ""
    body += [f"mov.b32 w{i}, 0;" for i in range(words)]
    target = f"{{{names}}}" if words > 1 else names
    body.append(f"@inside ld.global.nc.L1::no_allocate.{vector}b32 {target}, [$1];")
    if nvfp4:
        body += ["mov.b32 big, 0x78007800;", *nvfp4_multiplier("m", "$2", "0", "0x4040")]
    else:
        body += mxfp4_multiplier("m", "$2", "$3")
    out = []
    for i in range(words):
        body += decode(f"w{i}", "a", "m", PRIVATE if private else PUBLIC)
        pairs = [f"a{n}" for n in range(4)]
        if not private:  # (i, i + 4) to (2 i, 2 i + 1)
            body += [
                "prmt.b32 c0, a0, a1, 0x5410;",
                "prmt.b32 c1, a2, a3, 0x5410;",
                "prmt.b32 c2, a0, a1, 0x7632;",
                "prmt.b32 c3, a2, a3, 0x7632;",
            ]
            pairs = [f"c{n}" for n in range(4)]
        body += _to_bf16(pairs) if dtype == "bfloat16" else _to_fp8(pairs, i, _FP8[dtype])
    out = [f"o{n}" for n in range(4)]
    body.append(f"@inside st.global.v4.b32 [$4], {{{', '.join(out)}}};")
    registers = {
        "b32": "w0, w1, u, t, m, big, a0, a1, a2, a3, c0, c1, c2, c3, o0, o1, o2, o3",
        "b16": "low, high",
        "f32": "even, odd",
        "pred": "inside",
    }
    return block(body, registers), "=&r,l,r,r,l,r,f"


def _to_fp8(pairs: list[str], word: int, kind: str) -> list[str]:
    """Four pairs, times 2^5 (what MXFP4's float16 lacks), to eight bytes."""
    body = ["mov.b32 u, 0x50005000;"]
    for n in range(2):
        low, high = pairs[2 * n], pairs[2 * n + 1]
        body += [
            f"mul.f16x2 {low}, {low}, u;",
            f"mul.f16x2 {high}, {high}, u;",
            f"cvt.rn.satfinite.{kind}x2.f16x2 low, {low};",
            f"cvt.rn.satfinite.{kind}x2.f16x2 high, {high};",
            f"mov.b32 o{2 * word + n}, {{low, high}};",
        ]
    return body


def _to_bf16(pairs: list[str]) -> list[str]:
    body = []
    for n, pair in enumerate(pairs):
        body += [
            f"mov.b32 {{low, high}}, {pair};",
            "cvt.f32.f16 even, low;",
            "cvt.f32.f16 odd, high;",
            "mul.f32 even, even, $6;",
            "mul.f32 odd, odd, $6;",
            f"cvt.rn.bf16x2.f32 o{n}, odd, even;",
        ]
    return body
