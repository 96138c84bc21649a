"""Transform and quantize alone: bytes a second, beside the copy bandwidth of the same run.

    python -m kernels.bench.transform_quantize [--out FILE.json] [--budget 240]
        [--shapes 4096x4096,16384x14336,4096x14336] [--implementation triton]

x is bf16 [M, K] and cold. Bytes are those of x, of the result and of the stored transform. The copy
is an elementwise XLA kernel over a large array; that of the same shape is shown beside it.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Array

from kernels.bench import ceilings, cli, data, timing
from kernels.bench.results import Results
from wush_jax import formats
from wush_kernels import transform_quantize as op

SHAPES = ((4096, 4096), (16384, 14336), (4096, 14336))
TARGET, STRETCH = 0.7, 0.9  # of the copy bandwidth, from 4096 x 4096 elements up
TRANSFORMS = ("D=32", "D=128", "identity", "D=16", "D=64", "hadamard 32", "hadamard 128")
OUTPUTS = ("e5m2", "mxfp4", "nvfp4")  # for the FP8 product, and public codes
_MANY = ("D=32", "D=128", "identity")  # transforms that codes are timed with


def call(
    output: str, transform: str, implementation: str
) -> tuple[Callable[[Array, Array | None], Any], int | None]:
    """(function of x and T, D of a stored T or None)."""
    kind, _, block = transform.replace("=", " ").partition(" ")
    more: dict[str, Any] = {"implementation": implementation}
    if kind == "hadamard":
        more["hadamard_block"] = int(block)
    if output == "e5m2":
        run = functools.partial(op.transform_quantize_folded, **more)
    else:
        if output != "mxfp4":
            more["format"] = output
        run = functools.partial(op.transform_quantize_codes, **more)
    return run, int(block) if kind == "D" else None


def moved(M: int, K: int, output: str, D: int | None) -> float:
    """Bytes of x, of the result and of T."""
    bits = 8.0 if output == "e5m2" else formats.get_format(output).bits_per_value
    return M * K * (2 + bits / 8) + (0 if D is None else 2 * K * D)


def mismatch(x: Array, t: Array | None, output: str, transform: str, got: Any) -> float:
    """Share of differing bytes in 64 rows (codes; for E5M2 the values), to the XLA reference."""
    rows = np.linspace(0, x.shape[0] - 1, 64).round().astype(int)
    reference, _ = call(output, transform, "xla")
    expected = jax.tree.leaves(jax.jit(reference)(x[rows], t))[0]
    part = jax.tree.leaves(got)[0][rows]
    return float(np.mean(np.asarray(part).view(np.uint8) != np.asarray(expected).view(np.uint8)))


def measure(M: int, K: int, output: str, transform: str, options: argparse.Namespace) -> dict:
    """The figures of one row: "us" and "mismatch", or "failed"."""
    run, D = call(output, transform, options.implementation)
    x = data.tokens(jax.random.key(M), M, K)
    t = None if D is None else data.transforms(jax.random.key(K), K, D)
    program = jax.jit(run)

    def timed() -> timing.Timing:
        copies = [(leaf, t) for leaf in data.copies(x, options.cold * 1e6)]
        return timing.rotated(program, copies, iterations=24)

    measured, reason = timing.attempt(timed)
    if measured is None:
        return {"us": None, "failed": reason}
    wrong, reason = timing.attempt(lambda: mismatch(x, t, output, transform, program(x, t)))
    return {"us": measured.us, "mismatch": wrong, "failed": reason, "bytes": moved(M, K, output, D)}


def line(row: dict[str, Any]) -> str:
    head = f"{row['M']:6d} {row['K']:6d} {row['output']:6s} {row['transform']:13s}"
    if row["us"] is None:
        return f"{head} failed: {row['failed'][:100]}"
    rate = row["bytes"] / row["us"] / 1e6
    share = f"{row['share']:6.0%}" if row["share"] else "     -"
    wrong = "failed" if row["mismatch"] is None else f"{row['mismatch']:.1e}"
    return f"{head} {row['us']:9.2f} us {rate:6.2f} TB/s {share} of copy, mismatch {wrong}"


def run(options: argparse.Namespace) -> Results:
    """Runs the benchmark and prints its table."""
    budget = timing.Budget(options.budget)
    results = Results("transform_quantize", options.out, fresh=True)
    limits = ceilings.measure(options.ceilings, dots=False)
    results.run["ceilings"] = limits.as_json()
    print(f"{results.run['device']}, {results.run['timer']}, {results.run['versions']}")
    for M, K in options.shapes:
        x = data.tokens(jax.random.key(M), M, K)
        copy = functools.partial(ceilings.copy_timing, x, options.cold * 1e6)
        same, reason = timing.attempt(copy)
        speed = reason if same is None else f"{4 * M * K / same.us / 1e6:.2f} TB/s"
        print(f"copy of {M} x {K}: {speed}", flush=True)
        for output in OUTPUTS:
            for transform in TRANSFORMS if output == "e5m2" else _MANY:
                if not budget.allows():
                    print(f"no time for {M} x {K} {output} {transform}")
                    continue
                key = {"M": M, "K": K, "output": output, "transform": transform}
                with budget.row():
                    figures = measure(M, K, output, transform, options)
                share = None
                if figures["us"] and limits.copy_bytes:
                    share = figures["bytes"] / figures["us"] * 1e6 / limits.copy_bytes
                print(line(results.add(key, share=share, **figures)), flush=True)
    results.write()
    print(f"\nceilings: {limits}; target {TARGET:.0%} of the copy, stretch {STRETCH:.0%}")
    for row in sorted(results.rows, key=lambda r: (r["output"] != "e5m2", r["M"] * r["K"])):
        print(line(row))
    for transform in TRANSFORMS:
        shares = [
            row["share"]
            for row in results.rows
            if row["share"] and (row["output"], row["transform"]) == ("e5m2", transform)
        ]
        if shares:
            print(f"e5m2 {transform:13s} {min(shares):.0%} to {max(shares):.0%} of the copy")
    return results


def parser() -> argparse.ArgumentParser:
    p = cli.parser(__doc__, budget=240)
    p.add_argument("--shapes", type=cli.sizes, default=list(SHAPES), help="MxK,MxK")
    p.add_argument("--implementation", default="triton", help="triton or xla")
    cli.add_ceilings(p)
    return p


if __name__ == "__main__":
    run(parser().parse_args())
