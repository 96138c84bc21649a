"""`transform_quantize`: x Tᵀ quantized, as codes and scales or as values a product can read.

All three functions take x [M, K] (bf16, f16 or f32; K divisible by 32 and by D) and T, and

* multiply in bfloat16 for bfloat16 x, else in float32, and accumulate in float32;
* from there on compute what `wush_jax.formats.quantize` computes, bit for bit, except that numbers
  below 2^-126 may flush to zero on either side;
* let a NaN or Inf reach its own row only: its groups, and with a transform, possibly the up to 128
  columns around it;
* take x once from memory, and write once.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Int, UInt8

from wush_jax.formats import Format, get_format
from wush_jax.transforms.rotate import rotate
from wush_kernels import _triton
from wush_kernels.transform_quantize import arguments, reference
from wush_kernels.transform_quantize.config import Config
from wush_kernels.transform_quantize.config import config as default_config


def transform_quantize_codes(
    x: Float[Array, "M K"],
    transform: BFloat16[Array, "C D D"] | None,
    *,
    format: str | Format = "mxfp4",
    multiplier: float = 1.0,
    global_scale: Float[Array, "*_"] | float | None = None,
    rows: int | None = None,
    hadamard_block: int | None = None,
    implementation: str = "triton",
    config: Config | None = None,
    compute_capability: int | None = None,
) -> tuple[UInt8[Array, "rows K_2"], UInt8[Array, "rows K_G"]]:
    """Packed public codes (low nibble = even k) and scale bytes (E8M0 or E4M3).

    Args:
      x: bf16, f16 or f32.
      transform: T, or None for identity or, with ``hadamard_block``, Hadamard.
      format: "mxfp4" with rule `wush`, `ocp` or `ceil`; "nvfp4" with rule `wush` or `nvidia`.
      multiplier: for MXFP4, the rule acts on x Tᵀ times this: 1/3 over the global scale in use, for
        rule `wush`. A Python float, compiled into the kernel; 1 costs nothing.
      global_scale: in place of the rule's, as in `formats.quantize`. A Python float is compiled in,
        a float32 array of one number is read by the kernel. Rule `nvidia` needs one.
      rows: of the result, a multiple of 16, at least M (None: M); rows from M on are zeros.
      hadamard_block: D of the Hadamard transform.
      implementation: "triton" or "xla".
      config: None for the default of the shape.
      compute_capability: None asks the driver.

    Raises:
      ValueError: shapes or numbers do not fit; the message says what would.
      NotImplementedError: another format; Triton is missing.
    """
    fmt = get_format(format)
    problem = arguments.check(x, transform, hadamard_block, rows, implementation)
    ratio = arguments.ratio(fmt, multiplier, global_scale)
    if implementation == "xla":
        rotated = rotate(x, transform, hadamard_block)
        codes, stored = reference.codes(rotated, fmt, multiplier, global_scale)
        return reference.pad(codes, problem.rows), reference.pad(stored, problem.rows)
    _triton.require()
    from wush_kernels.transform_quantize import triton_kernel

    t, constants = arguments.transform_operand(x, transform, hadamard_block)
    shape = (problem.rows, problem.K // 2), (problem.rows, problem.K // fmt.group_size)
    codes, stored = _launch(
        triton_kernel.codes_kernel,
        (x, t, x if ratio.operand is None else ratio.operand),
        [jax.ShapeDtypeStruct(s, jnp.uint8) for s in shape],
        problem,
        config or default_config(problem.M, problem.K, problem.D, x.dtype.itemsize),
        compute_capability,
        FORMAT=fmt.name,
        RULE=fmt.rule,
        G=fmt.group_size,
        RATIO=ratio.static,
        BASE=ratio.base,
        **constants,
    )
    return codes, stored


def transform_quantize_folded(
    x: Float[Array, "M K"],
    transform: BFloat16[Array, "C D D"] | None,
    shift: Int[Array, "*s"] | int = 0,
    *,
    multiplier: float = 1.0,
    global_scale: Float[Array, "*_"] | float | None = None,
    dtype=jnp.float8_e5m2,
    rows: int | None = None,
    hadamard_block: int | None = None,
    implementation: str = "triton",
    config: Config | None = None,
    compute_capability: int | None = None,
) -> Float[Array, "rows K"]:
    """MXFP4 (rule `wush`) as element * 2^(byte - 127 + shift): its values over the global scale.

    Exact for group exponents byte - 127 + shift in [-15, 13]. Above, values saturate at ±57344;
    below, they round to the nearest number of ``dtype``, ties to even, and so flush to zero. A
    group with NaN or Inf becomes NaN.

    Args, Raises: as `transform_quantize_codes`; and
      shift: added to every group's exponent; |shift| <= 100. A number, or an int32 array, traced or
        not, whose first number it is: the kernel reads it in place.
      dtype: float8_e5m2, or float16, which holds the same values.
    """
    if dtype not in (jnp.float8_e5m2, jnp.float16):
        raise ValueError(f"dtype is float8_e5m2 or float16, not {jnp.dtype(dtype)}")
    ratio = arguments.ratio(get_format("mxfp4"), multiplier, global_scale)
    problem = arguments.check(x, transform, hadamard_block, rows, implementation)
    arguments.check_shift(shift)
    if implementation == "xla":
        rotated = rotate(x, transform, hadamard_block)
        y = reference.folded(rotated, _first(shift), dtype, multiplier, global_scale)
        return reference.pad(y, problem.rows)
    launch = (x, transform, hadamard_block, shift, dtype, problem, config, compute_capability)
    return _values(*launch, "mxfp4", ratio)


def transform_quantize_values(
    x: Float[Array, "M K"],
    transform: BFloat16[Array, "C D D"] | None,
    *,
    format: str | Format | None,
    multiplier: float = 1.0,
    global_scale: Float[Array, "*_"] | float | None = None,
    shift: Int[Array, "*s"] | int = 0,
    dtype=jnp.float16,
    rows: int | None = None,
    hadamard_block: int | None = None,
    implementation: str = "triton",
    config: Config | None = None,
    compute_capability: int | None = None,
) -> Float[Array, "rows K"]:
    """What a float16 or bfloat16 product reads, without the global scale, times 2^shift.

    NVFP4: element * E4M3 scale * 2^shift, exact in both dtypes where it is a normal number of them;
    in float16 it saturates at ±65504. A group with NaN or Inf becomes NaN.

    No format (weight-only layers): multiplier * x Tᵀ rounded to x's dtype, times 2^shift, rounded
    to ``dtype``. Finite values saturate at ±65504 in float16; NaN and Inf stay what they are.

    Args, Raises: as `transform_quantize_codes`; and
      format: "nvfp4" with a rule, or None.
      multiplier: without a format; a Python float, compiled into the kernel.
      shift: |shift| <= 100; a number or an array, as of `transform_quantize_folded`.
      dtype: float16 or bfloat16.
    """
    fmt = None if format is None else get_format(format)
    if fmt is not None and fmt.name != "nvfp4":
        raise NotImplementedError(f"values are for nvfp4 or None; {fmt}: transform_quantize_folded")
    if fmt is None and global_scale is not None:
        raise ValueError("without a format there is no global_scale")
    if dtype not in (jnp.float16, jnp.bfloat16):
        raise ValueError(f"dtype is float16 or bfloat16, not {jnp.dtype(dtype)}")
    if fmt is None:
        ratio = arguments.Ratio(float(np.float32(multiplier)), None, 1.0)
    else:
        ratio = arguments.ratio(fmt, multiplier, global_scale)
    problem = arguments.check(x, transform, hadamard_block, rows, implementation)
    arguments.check_shift(shift)
    if implementation == "xla":
        rotated = rotate(x, transform, hadamard_block)
        if fmt is None:
            y = reference.rounded(rotated, x.dtype, _first(shift), dtype, multiplier)
        else:
            y = reference.values(rotated, fmt, global_scale, _first(shift), dtype)
        return reference.pad(y, problem.rows)
    launch = (x, transform, hadamard_block, shift, dtype, problem, config, compute_capability)
    return _values(*launch, "none" if fmt is None else fmt.name, ratio)


def _first(shift: Array | int) -> Array:
    return jnp.asarray(shift, jnp.int32).reshape(-1)[0]


def _values(
    x: Array,
    transform: Array | None,
    hadamard_block: int | None,
    shift: Array | int,
    dtype: Any,
    problem: arguments.Problem,
    config: Config | None,
    compute_capability: int | None,
    name: str,
    ratio: arguments.Ratio,
) -> Array:
    _triton.require()
    from wush_kernels.transform_quantize import triton_kernel

    t, constants = arguments.transform_operand(x, transform, hadamard_block)
    g = x if ratio.operand is None else ratio.operand
    return _launch(
        triton_kernel.values_kernel,
        (x, t, g, jnp.asarray(shift, jnp.int32).reshape(-1)),
        jax.ShapeDtypeStruct((problem.rows, problem.K), dtype),
        problem,
        config or default_config(problem.M, problem.K, problem.D, x.dtype.itemsize),
        compute_capability,
        FORMAT=name,
        RATIO=ratio.static,
        BASE=ratio.base,
        **constants,
    )


def _launch(
    kernel: Any,
    operands: tuple[Array, ...],
    out: Any,
    problem: arguments.Problem,
    c: Config,
    compute_capability: int | None,
    **constants: Any,
) -> Any:
    return _triton.call(
        kernel,
        *operands,
        problem.M,
        problem.rows,
        out=out,
        grid=(problem.K // c.width, -(-problem.rows // (c.block_m * c.row_tiles))),
        num_warps=c.num_warps,
        num_stages=c.stages,
        compute_capability=compute_capability,
        K=problem.K,
        D=problem.D,
        W=c.width,
        BLOCK_M=c.block_m,
        ROW_TILES=c.row_tiles,
        **constants,
    )
