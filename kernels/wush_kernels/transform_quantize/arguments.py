"""Checks of `transform_quantize`'s arguments, and the kernels' operands made of them."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wush_jax.formats import Format
from wush_jax.transforms import hadamard

DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
BLOCKS = (16, 32, 64, 128)
MOST_SHIFT = 100  # |shift|: powers of two that are normal float32, and their products


class Problem(NamedTuple):
    """M rows of K features in blocks of D, to be written as ``rows`` rows."""

    M: int
    K: int
    D: int
    rows: int


def check(
    x: Array,
    transform: Array | None,
    hadamard_block: int | None,
    rows: int | None,
    implementation: str,
) -> Problem:
    """The sizes, or a ValueError that says what does not fit."""
    if implementation not in ("triton", "xla"):
        raise ValueError(f"unknown implementation {implementation!r}; there are triton, xla")
    if x.ndim != 2 or x.dtype not in DTYPES:
        raise ValueError(f"x is bf16, f16 or f32 [M, K], not {x.dtype} {x.shape}")
    if transform is not None and hadamard_block is not None:
        raise ValueError("give a transform or a hadamard_block, not both")
    M, K = x.shape
    D = hadamard_block or (32 if transform is None else transform.shape[-1])
    if D not in BLOCKS:
        raise ValueError(f"transform block D is 16, 32, 64 or 128, not {D}")
    if K % max(D, 32) or K == 0 or M == 0:
        raise ValueError(f"K must be a multiple of {max(D, 32)} and M at least 1; x is {x.shape}")
    if transform is not None and (
        transform.shape != (K // D, D, D) or transform.dtype != jnp.bfloat16
    ):
        raise ValueError(
            f"transform is bfloat16 {(K // D, D, D)} for x {x.shape}, "
            f"not {transform.dtype} {transform.shape}"
        )
    if rows is not None and (rows < M or rows % 16):
        raise ValueError(f"rows is a multiple of 16, at least M = {M}, not {rows}")
    return Problem(M, K, D, M if rows is None else rows)


def check_shift(shift: Array | int) -> None:
    """A static shift must be in range; a traced one cannot be checked."""
    if isinstance(shift, int) and abs(shift) > MOST_SHIFT:
        raise ValueError(f"shift is at most {MOST_SHIFT} in magnitude, not {shift}")


def transform_operand(
    x: Array, transform: Array | None, hadamard_block: int | None
) -> tuple[Array, dict]:
    """The T operand (x as a stand-in for identity) and the constants that describe it."""
    norm, stride = 1.0, 0
    if hadamard_block is not None:
        transform = jnp.asarray(hadamard.signs(hadamard_block), jnp.bfloat16)
        norm = float(np.float32(hadamard_block**-0.5))
    elif transform is not None:
        stride = transform.shape[-1] ** 2
    # bf16 T is exact in tf32; so is float16 x. float32 x is split in three.
    precision = {"bfloat16": "bf16", "float16": "tf32"}.get(x.dtype.name, "tf32x3")
    constants = {
        "T_STRIDE": stride,
        "TRANSFORM": transform is not None,
        "PRECISION": precision,
        "NORM": norm,
    }
    return (x if transform is None else transform), constants


class Ratio(NamedTuple):
    """What the rotated values are multiplied with: ``static``, or base / operand where it is 0."""

    static: float
    operand: Array | None
    base: float


def ratio(
    fmt: Format, multiplier: float = 1.0, global_scale: Float[Array, "*_"] | float | None = None
) -> Ratio:
    """base / g, where the rule with g = base acts on the values as they are (NVFP4: base 1).

    Raises:
      ValueError: not a positive normal number; both given; rule `nvidia` without a global scale.
      NotImplementedError: a format other than MXFP4 and NVFP4.
    """
    if fmt.name not in ("mxfp4", "nvfp4"):
        raise NotImplementedError(f"the kernel quantizes to mxfp4 and nvfp4, not to {fmt}")
    base = 1.0 if fmt.name == "nvfp4" else float(fmt.global_scale or 1.0)
    if multiplier != 1.0 and (fmt.name == "nvfp4" or global_scale is not None):
        raise ValueError(
            f"multiplier {multiplier} is for mxfp4 without a global_scale; {fmt} takes global_scale"
        )
    if global_scale is None:
        if fmt.global_scale is None:
            raise ValueError(f"{fmt} derives its global scale from data: give global_scale")
        if fmt.name == "mxfp4":
            return Ratio(_normal(multiplier, "multiplier"), None, base)
        global_scale = fmt.global_scale
    if isinstance(global_scale, (int, float, np.floating)):
        g = np.float32(_normal(global_scale, "global_scale"))
        return Ratio(_normal(float(np.float32(base) / g), "base / global_scale"), None, base)
    if global_scale.size != 1:
        raise ValueError(f"global_scale is one number for all rows, not {global_scale.shape}")
    return Ratio(0.0, global_scale.astype(jnp.float32).reshape(1), base)


def _normal(value: float, what: str) -> float:
    wide = float(np.float32(value))
    if not float(np.finfo(np.float32).tiny) <= wide < float("inf"):
        raise ValueError(f"{what} is a positive normal float32, not {value}")
    return wide
