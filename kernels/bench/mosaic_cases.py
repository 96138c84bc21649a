"""What is tried of the Mosaic GPU product: results to check, times beside XLA's."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp

from kernels.bench.ceilings import dot_kk
from kernels.bench.mosaic_products import (
    BF16,
    E4M3,
    E5M2,
    F32,
    FACTOR,
    WEIGHTS,
    check,
    operand,
    product,
    timed,
)
from kernels.bench.watched import Case
from wush_kernels.quantized_matmul.mosaic.config import Config

SHAPES = [(4096, 14336, 4096), (1024, 14336, 4096), (4096, 4096, 14336), (256, 14336, 4096)]
# Until which part of the budget cases of each kind may start.
UNTIL = {"check": 0.36, "time 0": 0.52, "time 1": 0.63, "time 2": 0.72, "time 3": 0.8, "xla": 0.8}


def describe(c: Config | None) -> str:
    if c is None:
        return "default"
    text = f"{c.tile_m}x{c.tile_n}/{c.stages} {c.split} pair={c.cluster} {c.raster}{c.width}"
    return text if c.promote is None else f"{text} promote={c.promote}"


def checks() -> Iterator[Case]:
    # shape, configuration, mixed FP8 types, precise, bias, activation, result
    table = [
        ((4096, 14336, 4096), None, True, False, False, None, BF16),
        ((1000, 4096, 4096), None, False, True, False, None, F32),
        ((17, 1000, 1056), None, False, False, True, "gelu", F32),
        ((1, 4096, 4096), None, True, False, False, None, BF16),
        ((100, 8, 160), None, False, True, True, "silu", F32),
        ((300, 4096, 14336), None, False, True, True, None, F32),
        ((300, 4096, 14336), Config(128, 192, 4, promote=16), True, False, False, None, BF16),
        ((300, 4096, 14336), Config(128, 256, 4), True, False, False, None, BF16),
        ((1000, 4096, 4096), Config(128, 128, 6, "tile"), True, False, False, None, BF16),
        ((1000, 4096, 4096), Config(128, 256, 4, "m", "m"), True, False, True, "silu", BF16),
        ((1000, 4096, 4096), Config(128, 256, 4, "m", "n"), True, False, False, None, F32),
        ((1000, 4096, 4096), Config(128, 128, 6, "tile", "m"), True, False, True, None, BF16),
        ((64, 4096, 4096), None, True, False, False, None, BF16),
        ((1000, 4096, 4096), Config(256, 128, 4, "m", "n"), True, False, False, None, BF16),
    ]
    for shape, c, mixed, precise, bias, activation, dtype in table:
        words = ["mixed" if mixed else "same", "precise" if precise else "fast", describe(c)]
        words += ["bias"] * bias + [activation or "", jnp.dtype(dtype).name]
        name = f"{'x'.join(map(str, shape))} {' '.join(filter(None, words))}"
        arguments = (shape, c, mixed, precise, bias, activation, dtype)
        yield Case("check", name, functools.partial(check, *arguments))


def configs(M: int) -> tuple[list[Config], list[Config]]:
    """To time: with one accumulator, and precise."""
    fast = [
        Config(128, 256, 4),
        Config(128, 256, 4, "m", "m"),
        Config(128, 256, 4, "m", "n"),
        Config(128, 128, 6, "tile", "m"),
        Config(256, 128, 4, "m", "n"),
        Config(128, 224, 4, "m", "m" if M > 128 else None),
        Config(128, 256, 4, "m", "m", "n", 8),
        Config(128, 128, 6, "tile"),
        Config(256, 128, 4),
        Config(128, 256, 4, "m", "m", "m", 8),
        Config(64, 256, 4, "tile", "m"),
        Config(128, 192, 4, "m", "m"),
        Config(128, 192, 4, "m", "m", promote=16),
    ]
    if M <= 256:
        fast = [Config(128, 224, 4), Config(128, 224, 4, "m", "m"), *fast[:5]]
        fast += [Config(128, 128, 6), Config(128, 128, 6, "m", "m"), Config(64, 256, 4, "n")]
    precise = [
        Config(128, 192, 4, "m", "m"),
        Config(128, 192, 4),
        Config(128, 128, 6, "m", "m"),
        Config(128, 128, 6),
        Config(128, 160, 5, "m", "m"),
    ]
    return fast, precise


def timings() -> Iterator[Case]:
    for i, (M, N, K) in enumerate(SHAPES):
        kind = f"time {i}"

        @functools.cache
        def args(M=M, N=N, K=K):
            shift = jax.random.normal(jax.random.key(7), (N,))
            return operand(1, M, K, E5M2), operand(2, N, K, WEIGHTS), F32(FACTOR), shift

        def ours(c, args=args, **keywords):
            return timed(product(c, **keywords), *args())

        def bf16(args=args):
            return timed(dot_kk, *(v.astype(BF16) for v in args()[:2]))

        one, promoted = configs(M)
        fast = [Case(kind, f"fast {describe(c)}", functools.partial(ours, c)) for c in one]
        precise = [
            Case(kind, f"precise {describe(c)}", functools.partial(ours, c, precise=True))
            for c in promoted
        ]
        more = [
            ("fast default", {}),
            ("fast default bias gelu", {"bias": True, "activation": "gelu"}),
            ("fast default f32 result", {"dtype": F32}),
            ("precise default f32 result", {"precise": True, "dtype": F32}),
        ]
        default = [Case(kind, name, functools.partial(ours, None, **k)) for name, k in more]
        some = 4 if i == 0 else 2
        yield Case(kind, "XLA bf16", bf16)
        yield from fast[:5] + precise[:some] + default[:some] + fast[5:]


def xla() -> Iterator[Case]:
    """XLA's FP8 product alone; some 20 s of autotuning each."""
    for i, (M, N, K) in enumerate(SHAPES[:2]):

        def run(M=M, N=N, K=K):
            return timed(dot_kk, operand(1, M, K, E5M2), operand(2, N, K, E4M3))

        yield Case("xla", f"XLA FP8 without factor {i}", run)


SECTIONS = {"check": checks, "time": timings, "xla": xla}
