"""PTX that turns words of packed 4-bit codes into scaled float16 pairs, for inline assembly.

A code `s ee m` put in float16 as s << 15 | eem << 9 is its value times 2^-14, subnormals included;
one float16 product with the group's multiplier then gives the scaled value exactly. `PUBLIC` and
`PRIVATE` say by which shifts the four pairs of a word (8 codes) get there; the private order of
`wush_jax.formats.private_layout` takes 6 logic instructions a word instead of 8.
"""

from __future__ import annotations

# Left shifts (negative: right) of a word that bring magnitudes to bits 25..27 and 9..11, and signs
# to bits 31 and 15. Pair i of the public order is codes (i, i + 4), of the private one codes
# (2 i, 2 i + 1).
PUBLIC = ((9, 12), (5, 8), (1, 4), (-3, 0))
PRIVATE = ((0, 0), (3, 3), (6, 1), (9, 2))
MAGNITUDE, SIGN = 0x0E000E00, 0x80008000

# Factors of two that the decoded weights carry, taken out again at the end.
MXFP4_SHIFT, NVFP4_SHIFT = -5, -7


def block(body: list[str], registers: dict[str, str]) -> str:
    """A scope with its own registers: {"b32": "a, b"}."""
    declared = [f".reg .{kind} {names};" for kind, names in registers.items() if names]
    return "{\n" + "\n".join(declared + body) + "\n}"


def outputs(kind: str, count: int) -> str:
    return ",".join([f"=&{kind}"] * count)


def mxfp4_multiplier(to: str, byte: str, bias: str) -> list[str]:
    """float16 2^(byte + bias - 15), twice; zero for exponents below float16's normal numbers."""
    return [
        f"add.s32 u, {byte}, {bias};",
        "max.s32 u, u, 0;",
        "min.s32 u, u, 30;",
        f"mul.lo.s32 {to}, u, 0x04000400;",
    ]


def nvfp4_multiplier(to: str, low: str, high: str, selector: str) -> list[str]:
    """float16 scale * 2^7, twice: E4M3 bits << 7 are scale * 2^-8. ``big`` holds 2^15 twice."""
    return [
        f"prmt.b32 u, {low}, {high}, {selector};",
        "and.b32 u, u, 0x00FF00FF;",
        "shl.b32 u, u, 7;",
        f"mul.f16x2 {to}, u, big;",
    ]


def _shifted(name: str, word: str, shift: int) -> tuple[list[str], str]:
    if shift == 0:
        return [], word
    kind = "shl.b32" if shift > 0 else "shr.u32"
    return [f"{kind} {name}, {word}, {abs(shift)};"], name


def decode(word: str, to: str, multiplier: str, order) -> list[str]:
    """Four float16 pairs of a word, scaled."""
    body = []
    for n, (magnitude, sign) in enumerate(order):
        shift, source = _shifted("t", word, magnitude)
        body += shift
        if magnitude == sign:
            body.append(f"and.b32 t, {source}, {MAGNITUDE | SIGN:#x};")
        else:
            body.append(f"and.b32 t, {source}, {MAGNITUDE:#x};")
            shift, source = _shifted("u", word, sign)
            body += shift
            body.append(f"lop3.b32 t, t, {source}, {SIGN:#x}, 0xF8;")
        body.append(f"mul.f16x2 {to}{n}, t, {multiplier};")
    return body
