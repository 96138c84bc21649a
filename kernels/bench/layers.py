"""Checks and times the kernels on the layer shapes of an LLM, beside XLA's bf16 product.

    python -m kernels.bench.layers --out DIR [--sections check,ceilings,...] [--shapes qkv,down]
                                   [--tokens 1,16,4096] [--budget 330]

(from the repository's root; `wush_kernels` must be installed or on PYTHONPATH). GPU time by CUPTI
where available, else wall time of many calls; medians. Inputs are random; where a run's weights
would fit in the L2 cache, several copies are rotated. Every section runs even if another fails.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import pathlib
import statistics
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import numpy as np
from wush_kernels.expand import expand, exponent_window
from wush_kernels.expand import reference as expand_reference
from wush_kernels.expand.config import Config as ExpandConfig
from wush_kernels.quantized_matmul import VARIANTS, decode_matmul, fp8_matmul
from wush_kernels.quantized_matmul.config import Config as DecodeConfig
from wush_kernels.quantized_matmul.config import config as decode_config
from wush_kernels.transform_quantize import reference as tq_reference
from wush_kernels.transform_quantize import transform_quantize_codes, transform_quantize_folded
from wush_kernels.transform_quantize.config import Config as TQConfig
from wush_kernels.wush_linear import wush_linear

from wush_jax import formats
from wush_jax.kernel import QuantizedKernel

# Llama-3.1-8B: name -> (K in-features, N out-features)
SHAPES = {
    "qkv": (4096, 6144),
    "o": (4096, 4096),
    "gate_up": (4096, 28672),
    "down": (14336, 4096),
}
TOKENS = (1, 16, 64, 256, 1024, 4096, 16384)
SHARES = {
    "check": 90,
    "ceilings": 20,
    "fp8": 45,
    "layers": 95,
    "decode": 50,
    "tq": 40,
    "expand": 15,
}
FACTOR = 1 / 9  # the two constants of rule `wush`
COLD_BYTES = 200e6

start = time.monotonic()
results: dict = {"rows": [], "checks": [], "errors": []}


def log(*words):
    print(f"[{time.monotonic() - start:6.1f}]", *words, flush=True)


class Spent(BaseException):
    """A section's share of the time is used up."""


deadline = math.inf


def guard():
    if time.monotonic() - start > deadline:
        raise Spent


def fail(name):
    text = traceback.format_exc()
    results["errors"].append({"where": name, "trace": text})
    log("ERROR", name, repr(sys.exc_info()[1])[:400])
    if len(results["errors"]) <= 4:
        print("\n".join(text.splitlines()[-20:]), flush=True)


# ---- timing --------------------------------------------------------------------------------------


@functools.cache
def cupti():
    try:
        from jax.experimental.mosaic.gpu import profiler

        f = jax.jit(lambda x: x * 2 + 1)
        _, t = profiler.measure(f, iterations=3)(jnp.ones((4096, 4096)))
        if t is None or min(t) <= 0:
            raise RuntimeError(f"no timings: {t}")
        return profiler.measure
    except Exception as error:  # any failure means: no CUPTI here, and the log says so
        log("CUPTI unavailable, wall times instead:", repr(error)[:200])
        return None


def microseconds(f, *args, iterations=11):
    """Median GPU time of one call of jitted f."""
    f = f if hasattr(f, "lower") else jax.jit(f)
    jax.block_until_ready(f(*args))
    if cupti() is not None:
        _, times = cupti()(f, iterations=iterations)(*args)
        return statistics.median(times) * 1e3
    spans = []
    for _ in range(5):
        before = time.perf_counter()
        out = None
        for _ in range(iterations):
            out = f(*args)
        jax.block_until_ready(out)
        spans.append((time.perf_counter() - before) / iterations)
    return statistics.median(spans) * 1e6


def breakdown(f, *args):
    """[(kernel name, microseconds)] of one call, or []."""
    if cupti() is None:
        return []
    jax.block_until_ready(f(*args))
    _, times = cupti()(f, aggregate=False, iterations=5)(*args)
    rows = zip(*times, strict=True)
    return [(r[0][0][:60], statistics.median(t for _, t in r) * 1e3) for r in rows]


def rotated(f, copies):
    """One program that calls f on each tuple of arguments of ``copies``; time it, divide."""
    program = jax.jit(lambda all_args: [f(*args) for args in all_args])
    return microseconds(program, copies) / len(copies)


def row(section, name, us, **more):
    entry = {"section": section, "name": name, "us": us, **more}
    results["rows"].append(entry)
    extra = " ".join(
        f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in more.items()
    )
    log(f"{section:9s} {name:44s} {us:9.2f} us  {extra}")
    return us


# ---- data ----------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(1, 2))
def weights(seed, N, K):
    """(codes, scales) of normal weights with channels of different sizes."""
    keys = jax.random.split(jax.random.key(seed), 2)
    w = jax.random.normal(keys[0], (N, K)) * 0.02
    w = w * jnp.exp2(jax.random.randint(keys[1], (N, 1), -1, 2).astype(jnp.float32))
    q = formats.quantize(w, "mxfp4")
    return q.codes, q.scales


@functools.partial(jax.jit, static_argnums=(1, 2))
def tokens(seed, M, K):
    return jax.random.normal(jax.random.key(seed), (M, K)).astype(jnp.bfloat16)


@functools.partial(jax.jit, static_argnums=(1, 2))
def transforms(seed, K, D):
    t = jax.random.normal(jax.random.key(seed), (K // D, D, D)) / math.sqrt(D)
    return t.astype(jnp.bfloat16)


def make_kernel(codes, scales, transform, D=32):
    """A `QuantizedKernel` around arrays."""
    N, half = codes.shape
    mxfp4 = formats.get_format("mxfp4")
    third = jnp.full((1, 1), 1 / 3, jnp.float32)
    return QuantizedKernel(
        codes, scales, third, third, transform, mxfp4, mxfp4, "wush", D, (2 * half, N), "kn",
        "bfloat16",
    )  # fmt: skip


def values64(codes, scales):
    """float64 element * 2^(byte - 127)."""
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    grid = np.concatenate([grid, -grid])
    codes = np.asarray(codes)
    nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(codes.shape[0], -1)
    return np.ldexp(grid[nibbles], np.repeat(np.asarray(scales).astype(int) - 127, 32, axis=1))


def frobenius(y, expected):
    y = np.asarray(jnp.asarray(y).astype(jnp.float32), np.float64)
    return float(np.linalg.norm(y - expected) / np.linalg.norm(expected))


# ---- sections ------------------------------------------------------------------------------------


def check():
    def verdict(name, value, limit):
        good = bool(value <= limit)  # NaN fails
        results["checks"].append({"name": name, "value": value, "limit": limit, "pass": good})
        log("PASS" if good else "FAIL", name, f"{value:.3g} (limit {limit:.1g})")

    def bits(a):
        return np.asarray(
            jax.lax.bitcast_convert_type(a, jnp.uint8 if a.itemsize == 1 else jnp.uint16)
        )

    def tq_case(M, K, kind, D, dtype):
        guard()
        name = f"tq {kind} D={D} {dtype.__name__} M={M} K={K}"
        try:
            x = (tokens(M, M, K).astype(jnp.float32) * 2).astype(dtype)
            t = transforms(7, K, D) if kind == "stored" else None
            h = D if kind == "hadamard" else None
            expected = jax.jit(lambda x, t: tq_reference.codes(tq_reference.rotate(x, t, h)))(x, t)
            got = jax.jit(lambda x, t: transform_quantize_codes(x, t, hadamard_block=h))(x, t)
            wrong = np.mean(
                np.asarray(formats.unpack(got[0])) != np.asarray(formats.unpack(expected[0]))
            )
            verdict(name + " codes", float(wrong), 1e-4)
            verdict(name + " scales", float(np.mean(np.asarray(got[1] != expected[1]))), 1e-4)
            for out in (jnp.float8_e5m2, jnp.float16):
                want = jax.jit(
                    lambda x, t: tq_reference.folded(tq_reference.rotate(x, t, h), 1, out)
                )(x, t)
                have = jax.jit(
                    lambda x, t: transform_quantize_folded(x, t, 1, hadamard_block=h, dtype=out)
                )(x, t)
                verdict(f"{name} {out.__name__}", float(np.mean(bits(have) != bits(want))), 1e-4)
            parts = jax.jit(
                lambda x, t: transform_quantize_folded(
                    x, t, 1, hadamard_block=h, dtype=jnp.float16, interleave=8
                )
            )(x, t)
            same = np.mean(bits(parts) != bits(tq_reference.interleave(have, 8)))
            verdict(name + " interleave", float(same), 0.0)
        except Exception:
            fail(name)

    for M in (17, 1000):
        tq_case(M, 1024, "stored", 32, jnp.bfloat16)
    tq_case(300, 1024, "stored", 128, jnp.bfloat16)
    tq_case(300, 1024, "stored", 16, jnp.bfloat16)
    tq_case(300, 1024, "hadamard", 32, jnp.bfloat16)
    tq_case(300, 1024, "identity", 32, jnp.bfloat16)
    tq_case(300, 1024, "stored", 32, jnp.float16)
    tq_case(300, 1024, "stored", 32, jnp.float32)
    tq_case(1, 1024, "identity", 32, jnp.float32)

    try:  # every exponent, saturation, NaN, minus zero; identity, so bit for bit
        x = jnp.exp2(jnp.arange(-140.0, 128.0))[:, None] * jax.random.normal(
            jax.random.key(3), (268, 256)
        )
        x = x.at[5, 40].set(jnp.nan).at[9, 70].set(jnp.inf).at[11].set(0.0).at[12].set(-0.0)
        a = transform_quantize_codes(x, None)
        b = transform_quantize_codes(x, None, implementation="xla")
        # rows of subnormal inputs: XLA itself may flush them on a GPU
        normal = np.arange(268) > 20
        verdict("tq all exponents codes", float(np.mean(np.asarray(a[0] != b[0])[normal])), 0.0)
        verdict("tq all exponents scales", float(np.mean(np.asarray(a[1] != b[1])[normal])), 0.0)
        log("     subnormal rows mismatch", float(np.mean(np.asarray(a[0] != b[0])[~normal])))
        for shift in (0, 30, -30):
            c = bits(transform_quantize_folded(x, None, shift))
            d = bits(transform_quantize_folded(x, None, shift, implementation="xla"))
            c, d = (np.where((v & 0x7F) > 0x7C, 0x7F, v)[normal] for v in (c, d))
            d = np.where(d == 0x80, 0, d)
            c = np.where(c == 0x80, 0, c)
            verdict(f"tq all exponents e5m2 shift {shift}", float(np.mean(c != d)), 0.0)
    except Exception:
        fail("tq all exponents")

    try:
        codes, scales = weights(1, 1000, 1024)
        scales = scales.at[3].set(255).at[4].set(0).at[5].set(254)
        offset = 9
        for config in (None, ExpandConfig(128, 4), ExpandConfig(512, 4)):
            a = bits(jax.jit(lambda c, s: expand(c, s, offset, config=config))(codes, scales))
            b = bits(jax.jit(expand_reference.expand)(codes, scales, offset))
            nan = (a & 0x7F == 0x7F) & (b & 0x7F == 0x7F)
            zero = (a & 0x7F == 0) & (b & 0x7F == 0)
            verdict(f"expand {config}", float(np.mean((a != b) & ~nan & ~zero)), 0.0)
    except Exception:
        fail("expand")

    def decode_case(M, N, K, config):
        guard()
        name = f"decode M={M} N={N} K={K} {config}"
        try:
            codes, scales = weights(2, N, K)
            offset, fits = exponent_window(scales, codes)
            x = tokens(5, M, K)
            q = formats.quantize(x, "mxfp4")
            a = transform_quantize_folded(
                x, None, 0, dtype=jnp.float16, interleave=8, implementation="xla"
            )
            scale = jnp.exp2(-offset.astype(jnp.float32))
            oracle = values64(q.codes, q.scales) @ values64(codes, scales).T
            for dtype, limit in ((jnp.float32, 1e-4), (jnp.bfloat16, 2e-3)):
                y = jax.jit(
                    lambda a, c, s, o, f: decode_matmul(a, c, s, o, f, dtype=dtype, config=config)
                )(a, codes, scales, offset, scale)
                verdict(f"{name} {dtype.__name__} fits={bool(fits)}", frobenius(y, oracle), limit)
        except Exception:
            fail(name)

    for M in (1, 3, 17, 64):
        decode_case(M, 1000, 1024, None)
    decode_case(16, 1024, 4096, DecodeConfig(16, 32, 128, 4, 4, 4))
    decode_case(16, 1024, 4096, DecodeConfig(16, 64, 256, 1, 4, 3))
    decode_case(16, 1024, 4096, DecodeConfig(16, 64, 128, 1, 4, 3, True))
    decode_case(16, 1024, 1056, None)

    codes, scales = weights(2, 1024, 4096)
    offset, _ = exponent_window(scales, codes)
    x = tokens(5, 512, 4096)
    q = formats.quantize(x, "mxfp4")
    oracle = values64(q.codes, q.scales) @ values64(codes, scales).T
    a = tq_reference.folded(x.astype(jnp.float32), 0)
    b = expand_reference.expand(codes, scales, offset)
    for precise in (False, True):
        for variant in VARIANTS:
            name = f"fp8 {variant} precise={precise}"
            guard()
            try:
                scale = 2.0 ** -int(offset)
                factor = (scale, 1.0) if variant == "split" else scale
                f = jax.jit(lambda a, b: fp8_matmul(a, b, factor, variant=variant, precise=precise))
                y = f(a, b)
                if variant == "plain":
                    y = y.astype(jnp.float32) * scale
                text = f.lower(a, b).compile().as_text()
                calls = sorted({w for w in text.replace('"', " ").split() if w.startswith("__")})
                fusions = text.count(" fusion(")
                log("     HLO", variant, calls, "fusions", fusions)
                verdict(name, frobenius(y, oracle), 2e-3)
            except Exception:
                fail(name)
    for M in (3, 64, 65, 1000):
        try:
            t = transforms(3, 4096, 32)
            kernel = make_kernel(codes, scales, t)
            x = tokens(8, M, 4096)
            y = jax.jit(wush_linear)(x, kernel)
            tq = jax.jit(lambda x, t: tq_reference.codes(tq_reference.rotate(x, t)))(x, t)
            oracle = values64(*tq) @ values64(codes, scales).T / 9
            verdict(f"wush_linear M={M}", frobenius(y, oracle), 2e-3)
        except Exception:
            fail(f"wush_linear M={M}")


def ceilings():
    x = tokens(0, 16384, 14336)
    us = microseconds(jax.jit(lambda x: x + jnp.bfloat16(1)), x)
    results["copy_tb_s"] = 2 * x.nbytes / us / 1e6
    row("ceiling", "copy (x + 1) 16384x14336 bf16", us, TBs=results["copy_tb_s"])
    for M, N, K in ((8192, 8192, 8192), (4096, 14336, 4096)):
        a, b = tokens(1, M, K), tokens(2, N, K)
        us = microseconds(jax.jit(bf16_dot), a, b)
        row("ceiling", f"bf16 {M}x{N}x{K}", us, TFs=2 * M * N * K / us / 1e6)
        a, b = a.astype(jnp.float8_e5m2), b.astype(jnp.float8_e4m3fn)
        us = microseconds(jax.jit(lambda a, b: fp8_matmul(a, b, 1.0, variant="plain")), a, b)
        row("ceiling", f"fp8 {M}x{N}x{K}", us, TFs=2 * M * N * K / us / 1e6)


def bf16_dot(x, w):
    return jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), preferred_element_type=jnp.bfloat16)


def attempt(name, f):
    guard()
    try:
        return f()
    except Exception:
        fail(name)
        return math.nan


def tq():
    for M, K in ((4096, 4096), (16384, 14336)):
        x = tokens(0, M, K)
        size = M * K * 3
        for D in (32, 128) if M == 4096 else (32,):
            t = transforms(1, K, D)
            configs: list[TQConfig | None] = [None]
            for width, block_m, tiles, warps, stages in (
                (32, 128, 4, 4, 2),
                (32, 128, 1, 4, 1),
                (64, 64, 4, 4, 2),
                (128, 64, 1, 4, 1),
                (128, 64, 4, 4, 2),
                (128, 64, 8, 4, 3),
                (128, 64, 8, 8, 3),
                (128, 128, 4, 8, 2),
                (128, 128, 1, 8, 1),
            ):
                if width >= D:
                    configs.append(TQConfig(width, block_m, tiles, warps, stages))
            for c in configs:
                name = f"{M}x{K} D={D} {tuple(vars(c).values()) if c else 'default'}"
                f = jax.jit(lambda x, t: transform_quantize_folded(x, t, 0, config=c))
                us = attempt(name, lambda: microseconds(f, x, t))
                row("tq", name, us, TBs=size / us / 1e6)
        for name, f in (
            ("hadamard", lambda x: transform_quantize_folded(x, None, 0, hadamard_block=32)),
            ("identity", lambda x: transform_quantize_folded(x, None, 0)),
        ):
            us = attempt(name, lambda: microseconds(jax.jit(f), x))
            row("tq", f"{M}x{K} {name}", us, TBs=size / us / 1e6)
        f = jax.jit(lambda x, t: transform_quantize_codes(x, t))
        us = attempt("codes", lambda: microseconds(f, x, transforms(1, K, 32)))
        row("tq", f"{M}x{K} codes D=32", us, TBs=M * K * 2.53 / us / 1e6)
    x, t = tokens(0, 16, 4096), transforms(1, 4096, 32)
    for c in (
        None,
        TQConfig(32, 16, 1, 1, 1),
        TQConfig(32, 16, 1, 4, 1),
        TQConfig(64, 16, 1, 2, 1),
    ):
        f = jax.jit(
            lambda x, t: transform_quantize_folded(
                x, t, 0, dtype=jnp.float16, interleave=8, config=c
            )
        )
        name = f"16x4096 f16 interleaved {tuple(vars(c).values()) if c else 'default'}"
        row("tq", name, attempt(name, lambda: microseconds(f, x, t)))


def expansion():
    for K, N in ((4096, 14336), (4096, 4096)):
        codes, scales = weights(0, N, K)
        for c in [
            ExpandConfig(g, w)
            for g, w in ((128, 4), (256, 4), (512, 4), (256, 8), (512, 8), (1024, 8))
        ]:
            name = f"N={N} K={K} {c}"
            copies = [(jnp.roll(codes, i, 0), scales) for i in range(4)]
            us = attempt(name, lambda: rotated(lambda a, b: expand(a, b, 9, config=c), copies))
            row("expand", name, us, TBs=N * K * 1.53125 / us / 1e6)


def fp8():
    for M, N, K in ((4096, 14336, 4096), (1024, 14336, 4096)):
        a = tq_reference.folded(tokens(0, M, K).astype(jnp.float32), 0)
        b = jax.jit(expand_reference.expand)(*weights(0, N, K), 9)
        for precise in (False, True):
            for variant in VARIANTS:
                if precise and variant not in ("plain", "operand_bf16"):
                    continue
                name = f"{M}x{N}x{K} {variant} {'precise' if precise else 'fast'}"
                if variant == "split":
                    f = jax.jit(
                        lambda a, b, s: fp8_matmul(
                            a, b, (s, FACTOR), variant="split", precise=precise
                        )
                    )
                elif "constant" in variant:
                    f = jax.jit(
                        lambda a, b, s: fp8_matmul(a, b, FACTOR, variant=variant, precise=precise)
                    )
                else:
                    f = jax.jit(
                        lambda a, b, s: fp8_matmul(a, b, s, variant=variant, precise=precise)
                    )
                us = attempt(name, lambda: microseconds(f, a, b, jnp.float32(0.25)))
                row("fp8", name, us, TFs=2 * M * N * K / us / 1e6)
                if M == 4096 and not math.isnan(us):
                    attempt(
                        name,
                        lambda: log(
                            "   ",
                            [(n, round(t, 1)) for n, t in breakdown(f, a, b, jnp.float32(0.25))],
                        ),
                    )


def decode():
    for K, N in ((4096, 14336), (14336, 4096), (4096, 4096)):
        copies = cold_copies(N, K)
        for M in (16, 64) if (N, K) == (14336, 4096) else (16,):
            xs = [tokens(i, M, K) for i in range(len(copies))]
            a = [
                tq_reference.interleave(
                    tq_reference.folded(x.astype(jnp.float32), 0, jnp.float16), 8
                )
                for x in xs
            ]
            args = [(v, c, s) for v, (c, s) in zip(a, copies, strict=True)]
            bm = 16 if M == 16 else 64
            default = decode_config(M, N, K)
            many = 8 if K > 8000 else 4
            configs = [default] + [
                DecodeConfig(*v)
                for v in (
                    (bm, 64, 128, 1, 4, 4),
                    (bm, 64, 128, 2, 4, 4),
                    (bm, 64, 128, many, 4, 4),
                    (bm, 64, 128, many, 4, 6),
                    (bm, 32, 128, many, 4, 4),
                    (bm, 32, 128, many, 2, 4),
                    (bm, 128, 128, many, 4, 4),
                    (bm, 128, 128, many, 8, 4),
                    (bm, 64, 256, many, 4, 3),
                    (bm, 64, 128, many, 4, 3, True),
                )
            ]
            for c in configs:
                name = f"M={M} N={N} K={K} {tuple(vars(c).values())}"
                us = attempt(
                    name,
                    lambda: rotated(
                        lambda a, q, s: decode_matmul(a, q, s, 9, FACTOR, config=c), args
                    ),
                )
                row("decode", name, us, TBs=N * K * 0.53125 / us / 1e6)


def cold_copies(N, K):
    codes, scales = weights(0, N, K)
    count = max(2, min(16, math.ceil(COLD_BYTES / codes.nbytes)))
    return [(jnp.roll(codes, i, 0), jnp.roll(scales, i, 0)) for i in range(count)]


def layers(shapes, token_counts):
    # the largest token counts answer the main question, then decode, then the middle
    order = sorted(token_counts, key=lambda m: (m not in (4096, 16, 1024, 1), -m))
    for M in order:
        for name in shapes:
            guard()
            try:
                layer(name, M)
            except Exception:
                fail(f"layer {name} M={M}")


def layer(name, M):
    K, N = SHAPES[name]
    flops = 2 * M * N * K
    cold = M <= 256
    w = tokens(1, N, K)
    if cold:
        count = max(2, min(8, math.ceil(COLD_BYTES / w.nbytes)))
        baseline = rotated(bf16_dot, [(tokens(i, M, K), jnp.roll(w, i, 0)) for i in range(count)])
    else:
        baseline = microseconds(jax.jit(bf16_dot), tokens(0, M, K), w)
    del w
    label = f"{name} M={M} K={K} N={N}"
    row("layer", label + " bf16", baseline, TFs=flops / baseline / 1e6)
    codes, scales = weights(0, N, K)
    offset = int(exponent_window(scales, codes)[0])

    def report(kind, us):
        row("layer", f"{label} {kind}", us, ratio=baseline / us, TFs=flops / us / 1e6)

    for D in (32, 128) if M >= 4096 and name in ("gate_up", "o") else (32,):
        t = transforms(2, K, D)
        if cold:
            run = lambda x, c, s: wush_linear(x, make_kernel(c, s, t, D), offset=offset)  # noqa: B023,E731
            args = [(tokens(i, M, K), c, s) for i, (c, s) in enumerate(cold_copies(N, K))]
            report(f"ours D={D}", attempt(label, lambda: rotated(run, args)))
            if M == 16:
                f = jax.jit(run)
                attempt(
                    label, lambda: log("   ", [(n, round(u, 1)) for n, u in breakdown(f, *args[0])])
                )
            continue
        x = tokens(0, M, K)
        kernel = make_kernel(codes, scales, t, D)
        for kind, more in (
            ("operand_bf16", {"variant": "operand_bf16"}),
            ("epilogue_bf16", {"variant": "epilogue_bf16"}),
        ):
            f = jax.jit(lambda x, k: wush_linear(x, k, offset=offset, **more))  # noqa: B023
            report(f"ours D={D} {kind}", attempt(label, lambda: microseconds(f, x, kernel)))
            attempt(
                label, lambda: log("   ", [(n, round(u, 1)) for n, u in breakdown(f, x, kernel)])
            )
        if D == 32:
            e = jax.jit(expand_reference.expand)(codes, scales, offset)
            f = jax.jit(lambda x, k, e: wush_linear(x, k, offset=offset, expanded=e))
            report(
                f"ours D={D} FP8 weights kept",
                attempt(label, lambda: microseconds(f, x, kernel, e)),
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--sections", default=",".join(SHARES))
    parser.add_argument("--shapes", default=",".join(SHAPES))
    parser.add_argument("--tokens", default=",".join(map(str, TOKENS)))
    parser.add_argument("--budget", type=float, default=350, help="seconds for all sections")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results["versions"] = {"jax": jax.__version__, "device": str(jax.devices()[0].device_kind)}
    log(results["versions"])
    shapes, counts = options.shapes.split(","), [int(m) for m in options.tokens.split(",")]
    run = {
        "check": check,
        "ceilings": ceilings,
        "fp8": fp8,
        "tq": tq,
        "expand": expansion,
        "decode": decode,
        "layers": lambda: layers(shapes, counts),
    }
    global deadline
    left = options.sections.split(",")
    while left:  # what a section leaves of its share goes to those after it
        remaining = max(options.budget - (time.monotonic() - start), 0)
        share = remaining * SHARES[left[0]] / sum(SHARES[name] for name in left)
        deadline = time.monotonic() - start + share
        section = left.pop(0)
        log(f"== {section}, {share:.0f} s")
        try:
            run[section]()
        except Spent:
            log(
                f"time spent: the rest of {section} is skipped (--sections {section} runs it alone)"
            )
        except Exception:
            fail(section)
        (options.out / "layers.json").write_text(json.dumps(results, indent=1))
    failed = [c["name"] for c in results["checks"] if not c["pass"]]
    log(f"{len(results['checks']) - len(failed)} checks passed, {len(failed)} failed: {failed}")
    log(f"{len(results['errors'])} errors: {[e['where'] for e in results['errors']]}")
    print("\n-- layers: us and ratio to bf16")
    for r in results["rows"]:
        if r["section"] == "layer":
            print(f"{r['name']:58s} {r['us']:9.1f} {r.get('ratio', 1):6.2f}x {r['TFs']:7.0f} TF/s")


if __name__ == "__main__":
    main()
