"""Checks and times the Mosaic GPU FP8 product over its configurations.

    python -m kernels.bench.mosaic_matmul [--out FILE.json] [--budget 95] [--only check,time,xla]

(from the repository's root; `wush_kernels` installed or on PYTHONPATH.) Operands hold MXFP4 values
whose group exponents spread over five octaves. Errors are relative Frobenius norms against the
float32 product of the same values in bfloat16 (exact products), which is itself checked against
float64 on some rows. GPU time by CUPTI, median of 15 calls. Cases run in a child process: one that
fails is printed and skipped, one that hangs or breaks the CUDA context costs a restart.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from wush_kernels.quantized_matmul.mosaic.config import Config
from wush_kernels.quantized_matmul.mosaic_gpu import MIXED_FP8, mosaic_matmul

E5M2, E4M3 = jnp.float8_e5m2, jnp.float8_e4m3fn
WEIGHTS = E4M3 if MIXED_FP8 else E5M2
F32, BF16 = jnp.float32, jnp.bfloat16
SHAPES = [(4096, 14336, 4096), (1024, 14336, 4096), (4096, 4096, 14336), (256, 14336, 4096)]
# Until which part of the budget cases of each kind may start.
UNTIL = {"check": 0.36, "time 0": 0.52, "time 1": 0.63, "time 2": 0.72, "time 3": 0.8, "xla": 0.8}
FACTOR = 1 / 9
PATIENCE = 45  # seconds without a word from the child
RESTARTS = 4


class Case(NamedTuple):
    """kind: a key of `UNTIL`; run: the record to keep (see `show`)."""

    kind: str
    name: str
    run: Callable[[], dict[str, Any]]


# ---- data and references -------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def operand(seed: int, rows: int, K: int, dtype):
    """[rows, K] E2M1 values times a power of two a group of 32; exact in E5M2 and E4M3."""
    keys = jax.random.split(jax.random.key(seed), 3)
    grid = jnp.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], F32)
    magnitude = grid[jax.random.randint(keys[0], (rows, K), 0, 8)]
    sign = jax.random.rademacher(keys[1], (rows, K), F32)
    power = jnp.exp2(jax.random.randint(keys[2], (rows, K // 32), -2, 3).astype(F32))
    return (magnitude * sign * jnp.repeat(power, 32, axis=1)).astype(dtype)


def xla_dot(a, b, dtype=BF16):
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=dtype)


@functools.partial(jax.jit, compiler_options={"xla_gpu_autotune_level": 0})
def oracle(a, b, bias):
    return xla_dot(a.astype(BF16), b.astype(BF16), F32) * F32(FACTOR) + bias


@functools.partial(jax.jit, static_argnums=2)
def distance(y, expected, activation):
    """Relative Frobenius distance, and whether all of y is finite."""
    if activation is not None:
        expected = getattr(jax.nn, activation)(expected)
    y = y.astype(F32)
    error = jnp.linalg.norm(y - expected) / jnp.linalg.norm(expected)
    return error, jnp.isfinite(y).all()


def poison():
    """Fills freed memory with NaN bytes, so that an output nobody writes shows."""
    jax.block_until_ready([jnp.full(1 << 26, 0xFF, jnp.uint8) for _ in range(4)])


def product(c: Config | None, bias=False, **keywords):
    def f(a, b, factor, shift):
        return mosaic_matmul(a, b, factor, bias=shift if bias else None, config=c, **keywords)

    return jax.jit(f)


# ---- cases ---------------------------------------------------------------------------------------


def describe(c: Config | None) -> str:
    if c is None:
        return "default"
    text = f"{c.tile_m}x{c.tile_n}/{c.stages} {c.split} pair={c.cluster} {c.raster}{c.width}"
    return text if c.promote is None else f"{text} promote={c.promote}"


def check(shape, c, mixed, precise, bias, activation, dtype) -> dict[str, Any]:
    M, N, K = shape
    a, b = operand(M, M, K, E5M2), operand(N + 1, N, K, WEIGHTS if mixed else E5M2)
    shift = jax.random.normal(jax.random.key(7), (N,)) * (0.3 * K**0.5 if bias else 0.0)
    f = product(c, bias, precise=precise, activation=activation, dtype=dtype)
    expected = oracle(a, b, shift)
    some = np.unique(np.linspace(0, M - 1, 5).astype(int))
    exact = np.asarray(a)[some].astype(np.float64) @ np.asarray(b).astype(np.float64).T
    exact = exact * FACTOR + np.asarray(shift)
    oracle_error = np.linalg.norm(np.asarray(expected)[some] - exact) / np.linalg.norm(exact)
    poison()
    y = f(a, b, F32(FACTOR), shift)
    error, finite = (v.item() for v in distance(y, expected, activation))
    same = bool(jnp.array_equal(y, f(a, b, F32(FACTOR), shift)))
    limit = 2e-3 if dtype == BF16 else (1e-4 if precise else 1.5e-3)
    good = finite and error <= limit and same and bool(oracle_error < 1e-5)
    note = f"all finite {finite}, twice the same {same}, oracle's error {oracle_error:.1g}"
    return {"error": error, "limit": limit, "pass": good, "note": note}


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
            return {"us": microseconds(product(c, **keywords), *args())}

        def bf16(args=args):
            return {"us": microseconds(jax.jit(xla_dot), *(v.astype(BF16) for v in args()[:2]))}

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
            return {
                "us": microseconds(jax.jit(xla_dot), operand(1, M, K, E5M2), operand(2, N, K, E4M3))
            }

        yield Case("xla", f"XLA FP8 without factor {i}", run)


@functools.cache
def cupti():
    try:
        from jax.experimental.mosaic.gpu import profiler

        f = jax.jit(lambda x: x * 2 + 1)
        if not profiler.measure(f, iterations=3, aggregate=False)(jnp.ones((4096, 4096)))[1]:
            raise RuntimeError("no timings")
        return profiler.measure
    except Exception as error:  # any failure means: no CUPTI here, and the log says so
        print("CUPTI unavailable, wall times instead:", repr(error)[:200], flush=True)
        return None


def microseconds(f, *args, iterations: int = 15) -> float:
    """Median GPU time of one call of jitted f."""
    jax.block_until_ready(f(*args))
    measure = cupti()
    if measure is not None:
        calls: Any = measure(f, iterations=iterations, aggregate=False)(*args)[1]
        return statistics.median(sum(ms for _, ms in call) for call in calls) * 1e3
    spans = []
    for _ in range(5):
        before = time.perf_counter()
        jax.block_until_ready([f(*args) for _ in range(iterations)])
        spans.append((time.perf_counter() - before) / iterations)
    return statistics.median(spans) * 1e6


# ---- the child runs cases, the parent watches it -------------------------------------------------


def child(progress: pathlib.Path, started: float, budget: float, only: list[str]) -> None:
    """Runs what ``progress`` does not name yet, writing a line before and after each case."""
    begun = {line["key"] for line in map(json.loads, progress.read_text().splitlines())}
    print("jax", jax.__version__, jax.devices()[0].device_kind, "weights", jnp.dtype(WEIGHTS).name)

    def note(**line):
        with progress.open("a") as f:
            f.write(json.dumps(line) + "\n")

    sections = {"check": checks, "time": timings, "xla": xla}
    for case in (case for name in only for case in sections[name]()):
        key, elapsed = f"{case.kind} | {case.name}", time.time() - started
        if key in begun or elapsed > budget * UNTIL[case.kind]:
            continue
        note(key=key, state="begun")
        try:
            line = case.run()
            note(key=key, state="done", kind=case.kind, name=case.name, **line)
            text = show(line)
        except Exception as error:
            trace = traceback.format_exc().splitlines()
            note(key=key, state="failed", error=repr(error)[:500], trace=trace)
            text = "ERROR " + repr(error)[:300] + "\n    " + "\n    ".join(trace[-15:])
        print(f"[{time.time() - started:5.1f}] {key:64s} {text}", flush=True)
        jax.block_until_ready(jnp.ones(8) + 1)  # raises, and ends this process, if CUDA is broken


def show(line: dict[str, Any]) -> str:
    if "us" in line:
        return f"{line['us']:8.1f} us"
    verdict = "PASS" if line["pass"] else "FAIL"
    return f"{verdict} error {line['error']:.3g} (limit {line['limit']:.2g}), {line['note']}"


def watch(command: list[str], progress: pathlib.Path, deadline: float) -> int:
    """Runs command until it ends, is silent for too long, or the time is over; its exit status."""
    process = subprocess.Popen(command)
    last = time.time()
    while process.poll() is None:
        time.sleep(0.2)
        last = max(last, progress.stat().st_mtime)
        if time.time() - last > PATIENCE or time.time() > deadline:
            print("no progress, or out of time: ending the child", flush=True)
            process.kill()
            break
    return process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=pathlib.Path, help="write the figures there, as JSON")
    parser.add_argument("--budget", type=float, default=95, help="seconds for everything")
    parser.add_argument("--only", default="check,time,xla")
    parser.add_argument("--progress", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, default=time.time(), help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.progress is not None:
        child(o.progress, o.started, o.budget, o.only.split(","))
        return
    with tempfile.TemporaryDirectory() as folder:
        progress = pathlib.Path(folder) / "progress"
        progress.touch()
        command = [sys.executable, "-m", "kernels.bench.mosaic_matmul", "--only", o.only]
        command += ["--budget", str(o.budget), "--progress", str(progress)]
        command += ["--started", str(o.started)]
        for _ in range(RESTARTS + 1):
            if watch(command, progress, o.started + o.budget + 15) == 0:
                break
            if time.time() - o.started > o.budget * 0.9:
                break
        lines = [json.loads(line) for line in progress.read_text().splitlines()]
    report(lines)
    if o.out is not None:
        o.out.write_text(json.dumps(lines, indent=1))


def report(lines: list[dict[str, Any]]) -> None:
    done = [line for line in lines if line["state"] == "done"]
    ended = {line["key"] for line in lines if line["state"] != "begun"}
    tested = [line for line in done if line["kind"] == "check"]
    print(f"\n{len(tested)} checks, failed: {[c['name'] for c in tested if not c['pass']]}")
    print("errors:", [line["key"] for line in lines if line["state"] == "failed"])
    print("hung or crashed:", [line["key"] for line in lines if line["key"] not in ended])
    for i, (M, N, K) in enumerate(SHAPES):
        print(f"\n-- M, N, K = {M} {N} {K}")
        rows = [x for x in done if x["kind"] == f"time {i}" or x["name"].endswith(f"factor {i}")]
        for x in sorted(rows, key=lambda x: x["us"]):
            rate = 2 * M * N * K / x["us"] / 1e6
            print(f"{x['name']:48s} {x['us']:8.1f} us {rate:6.0f} TFLOP/s")


if __name__ == "__main__":
    main()
