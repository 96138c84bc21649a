"""PTX that starts the accumulators and adds up those of several warps, for inline assembly."""

from __future__ import annotations

from wush_kernels.words_ptx import block, outputs

SHARED = 48 * 1024  # bytes of shared memory a program may declare


def zeros(count: int) -> tuple[str, str]:
    """(text, constraints): ``count`` float zeros out, one ignored operand in."""
    return block([f"mov.f32 ${i}, 0f00000000;" for i in range(count)], {}), outputs(
        "f", count
    ) + ",r"


def reduce(count: int, warps: int) -> tuple[tuple[str, str], int]:
    """Sums of ``count`` accumulators over the warps, through shared memory; and how many outputs.

    Operands: outputs, the accumulators, warp, lane. Output o of warp w is accumulator o warps + w.
    """
    results = -(-count // warps)
    chunk = min(count, SHARED // (warps * 128) // warps * warps)  # accumulators at a time
    warp, lane = f"${results + count}", f"${results + count + 1}"
    row = chunk * 128  # bytes of a warp
    body = [
        f".shared .align 16 .b8 sums[{warps * row}];",
        "mov.u32 base, sums;",
        f"mad.lo.s32 base, {lane}, 4, base;",
        f"mad.lo.s32 own, {warp}, {row}, base;",
    ]
    for start in range(0, count, chunk):
        if start:
            body.append("bar.sync 0;")
        inside = range(start, min(start + chunk, count))
        body += [f"st.shared.f32 [own+{128 * (i - start)}], ${results + i};" for i in inside]
        body.append("bar.sync 0;")
        for o in range(start // warps, -(-inside.stop // warps)):
            # a warp beyond the last accumulator repeats it; the caller masks it out
            body += [f"add.s32 at, {warp}, {o * warps};", f"min.s32 at, at, {inside.stop - 1};"]
            body += [f"sub.s32 at, at, {start};", "mad.lo.s32 at, at, 128, base;"]
            body.append(f"ld.shared.f32 ${o}, [at];")
            for w in range(1, warps):
                body += [f"ld.shared.f32 v, [at+{w * row}];", f"add.f32 ${o}, ${o}, v;"]
    constraints = [outputs("f", results), ",".join(["f"] * count), "r,r"]
    registers = {"b32": "base, own, at", "f32": "v"}
    return (block(body, registers), ",".join(constraints)), results
