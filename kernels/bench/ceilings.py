"""What this machine can do at best, measured in the same run as everything compared with it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from kernels.bench import data, timing

SIZES = {"full": ((16384, 14336), 8192), "small": ((256, 512), 128)}


@dataclasses.dataclass(frozen=True)
class Ceilings:
    """None where a measurement failed; ``reasons`` then says why.

    Attributes:
      copy_bytes: bytes per second, read and written, of an elementwise XLA kernel.
      read_bytes: bytes per second of a sum that reads everything once: above a copy's, and what a
        decode layer, which hardly writes, can hope for.
      bf16_flops, fp8_flops: per second, of XLA's dot of square matrices; FP8 is E5M2 x E4M3 with
        fast accumulation.
      reasons: what failed, and why.
    """

    copy_bytes: float | None
    read_bytes: float | None
    bf16_flops: float | None
    fp8_flops: float | None
    reasons: dict[str, str]

    def limit_us(self, flops: float, moved: float) -> float | None:
        """The least time of a layer: its products at the FP8 rate or its bytes at the copy's."""
        flop_rate, byte_rate = self.fp8_flops or self.bf16_flops, self.copy_bytes
        if flop_rate is None or byte_rate is None:
            return None
        return 1e6 * max(flops / flop_rate, moved / byte_rate)

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        figures = (
            ("copy", self.copy_bytes, "TB/s"),
            ("read", self.read_bytes, "TB/s"),
            ("bf16", self.bf16_flops, "TFLOP/s"),
            ("fp8", self.fp8_flops, "TFLOP/s"),
        )
        known = [f"{name} {rate / 1e12:.4g} {unit}" for name, rate, unit in figures if rate]
        return ", ".join(known + [f"no {name}: {why}" for name, why in self.reasons.items()])


def measure(size: str = "full", dots: bool = True) -> Ceilings:
    """Measures them all, or only the bandwidths.

    Args:
      size: "full", or "small" to try it out.
      dots: whether to measure the matrix products, which XLA tunes for half a minute.
    """
    (rows, columns), n = SIZES[size]
    reasons: dict[str, str] = {}

    def rate(name: str, work: float, time: Callable[[], timing.Timing]) -> float | None:
        measured, reason = timing.attempt(time)
        if measured is None:
            reasons[name] = reason or ""
            return None
        return work / measured.us * 1e6

    x = data.tokens(jax.random.key(0), rows, columns)
    copy = rate("copy", 2.0 * x.nbytes, lambda: copy_timing(x))
    read = rate("read", 1.0 * x.nbytes, lambda: timing.measure(_read, x))
    del x
    if not dots:
        return Ceilings(copy, read, None, None, reasons)
    a, b = (data.tokens(jax.random.key(i), n, n) for i in (1, 2))
    flops = 2.0 * n**3
    bf16 = rate("bf16", flops, lambda: timing.measure(dot_kk, a, b))
    low = a.astype(jnp.float8_e5m2), b.astype(jnp.float8_e4m3fn)
    fp8 = rate("fp8", flops, lambda: timing.measure(dot_kk, *low))
    return Ceilings(copy, read, bf16, fp8, reasons)


def copy_timing(x: jax.Array, cold: float = 0.0) -> timing.Timing:
    """Reading and writing all of x in one elementwise XLA kernel: the faster of two."""
    copies = [(leaf,) for leaf in data.copies(x, cold)]
    flip = jnp.ones((), jnp.int16)
    both = (
        timing.rotated(lambda x: x + jnp.ones((), x.dtype), copies),
        timing.rotated(functools.partial(_flip, flip=flip), copies),
    )
    return min(both, key=lambda timing: timing.us)


def _flip(x: jax.Array, flip: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(x, jnp.int16) ^ flip


@jax.jit
def _read(x: jax.Array) -> jax.Array:
    return jnp.max(jax.lax.bitcast_convert_type(x, jnp.int16), axis=1)


@jax.jit
def dot_kk(a: jax.Array, b: jax.Array) -> jax.Array:
    """a bᵀ, bf16: a [M, K], b [N, K]."""
    return jax.lax.dot_general(a, b, (((1,), (1,)), ((), ())), preferred_element_type=jnp.bfloat16)
