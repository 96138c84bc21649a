"""Number formats: quantize an array, read it back.

    x[..., k]  ~  grid value of code[..., k] * scale[..., k // G] * global scale

`format_table` lists the formats, `elements` has the grids and `scales` the scale types. The
following conditions hold:

* Codes and scales are those of the float32 value of x, subnormals included. Only a *dequantized*
  value below 2^-126 may flush to zero, as XLA's arithmetic does on some backends; one within a
  rounding step of the largest float32 may overflow to infinity.
* A group with a NaN or an infinity dequantizes to NaN, and no other group changes. A zero group is
  stored as zeros and dequantizes to zero. No code is minus zero.
* A given global scale h replaces the rule's g: the rule then acts on x * g / h, or, for NVFP4, on
  its own formula with h.
* Everything works under jit and vmap (rule `nvidia` then takes each mapped slice for a tensor).
  All arithmetic is float32.
"""

import dataclasses
import functools
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Array, BFloat16, Float, Float32, Int8, UInt8

from wush_jax.formats import elements, scales
from wush_jax.formats.elements import pack, unpack
from wush_jax.formats.format import Format, activation_scale, get_format
from wush_jax.formats.scales import magnitude_bits

__all__ = [
    "Format",
    "Quantized",
    "activation_scale",
    "codes_to_values",
    "data_global_scale",
    "dequantize",
    "fake_quantize",
    "get_format",
    "magnitude_bits",
    "pack",
    "quantize",
    "quantized_values",
    "scales_to_values",
    "unpack",
]

# As stored, beside an array [*b, K]: bytes of codes, and the scales of its groups.
Codes: TypeAlias = UInt8[Array, "*b Kb"] | Int8[Array, "*b Kb"]
Scales: TypeAlias = UInt8[Array, "*b Kg"] | BFloat16[Array, "*b Kg"]
GlobalScale: TypeAlias = Float32[Array, ""] | Float32[Array, "*#b 1"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantized array [..., K], a pytree of arrays with `format` static.

    Attributes:
        codes: bytes [..., Kb]: uint8, Kb = K/2, two 4-bit codes a byte, low nibble = even index;
            8-bit formats: int8, Kb = K.
        scales: [..., Kg], Kg = K/G groups, in the format's `scale_dtype`.
        global_scale: float32, [] or the rank of the array with last axis 1 (broadcastable); under
            vmap, a stack of such.
        format: how to read them.
    """

    codes: Codes
    scales: Scales
    global_scale: Float32[Array, "*_"]
    format: Format = dataclasses.field(metadata={"static": True})


def quantize(
    x: Float[Array, "*b K"],
    format: str | Format,
    *,
    global_scale: Float[Array, ""] | Float[Array, "*#b 1"] | float | None = None,
) -> Quantized:
    """Codes and scales of x, groups running along the last axis.

    Args:
        x: float32, bfloat16 or float16 (read as float32); K divisible by the group size.
        format: "mxfp4", "nvfp4/nvidia", a Format, ...
        global_scale: overrides the rule's; positive normal float32, a number, [] or of the rank of
            x with last axis 1.

    Returns:
        No gradient flows through it.

    Raises:
        ValueError: x is not floating point, K is not divisible, the global scale has another
            shape, no such format.
    """
    fmt = get_format(format)
    values, stored, g = _quantize(x, fmt, global_scale)
    codes = fmt.grid.encode(values)
    if fmt.packed:
        codes = pack(codes)
    return Quantized(codes, stored, g, fmt)


def dequantize(q: Quantized, dtype=jnp.float32) -> Float[Array, "*b K"]:
    """The array that q stands for: (grid value * scale) * global scale in float32, then cast."""
    values = codes_to_values(q.codes, q.format)
    return _times_scales(values, q.scales, q.global_scale, q.format).astype(dtype)


def fake_quantize(
    x: Float[Array, "*b K"],
    format: str | Format,
    *,
    global_scale: Float[Array, ""] | Float[Array, "*#b 1"] | float | None = None,
) -> Float[Array, "*b K"]:
    """`dequantize(quantize(x))` in the dtype of x, bit for bit, without codes; straight-through
    gradient: the derivative in x is the identity, in the global scale zero (both autodiff modes).

    Args, Raises: as `quantize`.
    """
    return _fake_quantize(get_format(format), x, global_scale)


def quantized_values(
    x: Float[Array, "*b K"],
    format: str | Format,
    *,
    global_scale: Float[Array, ""] | Float[Array, "*#b 1"] | float | None = None,
) -> tuple[Float32[Array, "*b K"], GlobalScale]:
    """What a matrix product consumes: float32 [..., K] grid values times group scales, and the
    global scale that its result is still to be multiplied with.

    The first is exactly a bfloat16 where the format is `exact_in_bf16`. No gradient flows through.

    Args, Raises: as `quantize`.
    """
    fmt = get_format(format)
    values, stored, g = _quantize(x, fmt, global_scale)
    return _times_scales(values, stored, None, fmt), g


def data_global_scale(x: Float[Array, "*s"], format: str | Format) -> Float32[Array, ""]:
    """The global scale of a whole tensor, float32: for rule `nvidia` amax / (6 * 448).

    NaN and Inf elements do not count. 1 for an all-zero tensor, never below 2^-126. For a rule with
    a constant global scale, that constant.

    Raises:
        ValueError: x is not floating point.
    """
    fmt = get_format(format)
    _check_float(x, fmt)
    if fmt.global_scale is not None:
        return jnp.asarray(fmt.global_scale, jnp.float32)
    bits = magnitude_bits(jax.lax.stop_gradient(x).astype(jnp.float32))
    largest = jnp.max(jnp.where(bits < scales.INFINITY_BITS, bits, 0), initial=0)
    amax = jax.lax.bitcast_convert_type(largest, jnp.float32)
    g = scales.quotient(amax, elements.E2M1_MAX * scales.E4M3_MAX)
    return jnp.where(largest == 0, 1.0, jnp.maximum(g, scales.SMALLEST_NORMAL))


def codes_to_values(codes: Codes, format: str | Format, dtype=jnp.float32) -> Float[Array, "*b K"]:
    """Grid values [..., K] of stored codes, without scales; exact in bfloat16 and float16 too."""
    fmt = get_format(format)
    values = fmt.grid.decode(unpack(codes) if fmt.packed else codes)
    return values.astype(dtype)


def scales_to_values(
    stored: UInt8[Array, "*s"] | BFloat16[Array, "*s"], format: str | Format
) -> Float32[Array, "*s"]:
    """float32 group scales, without the global scale. E8M0 byte 0 is 2^-127, a subnormal."""
    fmt = get_format(format)
    if fmt.name == "mxfp4":
        return scales.e8m0_decode(stored)
    return scales.e4m3_decode(stored) if fmt.name == "nvfp4" else stored.astype(jnp.float32)


def _check_float(x: Array, fmt: Format) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{fmt} quantizes floating point, not {x.dtype} {x.shape}; cast it first")


def _check_groups(x: Array, fmt: Format) -> None:
    k, size = (x.shape[-1] if x.ndim else 1), fmt.group_size
    if x.ndim == 0 or k % size:
        fits = " or ".join(str(size * n) for n in range(max(k // size, 1), k // size + 2))
        raise ValueError(
            f"{fmt} needs the last axis K divisible by its group size G = {size}, but K is {k} in "
            f"{x.shape}; K = {fits} would fit"
        )


def _quantize(
    x: Float[Array, "*b K"], fmt: Format, global_scale: Array | float | None
) -> tuple[Float32[Array, "*b K"], Scales, GlobalScale]:
    """Grid values, stored scales and global scale of x."""
    _check_float(x, fmt)
    _check_groups(x, fmt)
    x = jax.lax.stop_gradient(x).astype(jnp.float32)
    if global_scale is not None:
        g = jax.lax.stop_gradient(jnp.asarray(global_scale, jnp.float32))
        if g.ndim and (g.ndim != x.ndim or g.shape[-1] != 1):
            raise ValueError(
                f"a global scale is [] or [..., 1] of the rank of x {x.shape}, not {g.shape}"
            )
    else:
        g = data_global_scale(x, fmt)
    # The rule acts on x * ratio. Its own global scale is ratio 1; but NVFP4 always divides by it.
    base = 1.0 if fmt.name == "nvfp4" else float(fmt.global_scale or 1.0)
    if global_scale is not None or fmt.name == "nvfp4":
        x = scales.times(x, base / g)
    groups = x.reshape(*x.shape[:-1], x.shape[-1] // fmt.group_size, fmt.group_size)
    if fmt.name == "mxfp4":
        v, stored = scales.divide_e8m0(groups, fmt.rule, 3.0 if fmt.rule == "wush" else 1.0)
    elif fmt.name == "nvfp4":
        v, stored = scales.divide_e4m3(groups, elements.E2M1_MAX)
    else:
        limit = None if fmt.rule == "wush" else (7.0 if fmt.packed else 127.0)
        v, stored = scales.divide_bf16(groups, limit)
    return fmt.grid.round(v).reshape(x.shape), stored, g


def _times_scales(
    values: Float32[Array, "*b K"], stored: Scales, g: GlobalScale | None, fmt: Format
) -> Float32[Array, "*b K"]:
    """Grid values times group scales, and times the global scale if given."""
    if fmt.name == "mxfp4" and g is not None:
        values = values * g  # before the power of two: byte 0 loses nothing that ends up normal
    groups = values.reshape(*stored.shape, fmt.group_size)
    if fmt.name == "mxfp4":
        return scales.times_e8m0(groups, stored[..., None]).reshape(values.shape)
    product = (groups * scales_to_values(stored, fmt)[..., None]).reshape(values.shape)
    return product if g is None else product * g


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _fake_quantize(
    fmt: Format, x: Float[Array, "*b K"], global_scale: Array | float | None
) -> Float[Array, "*b K"]:
    values, stored, g = _quantize(x, fmt, global_scale)
    return _times_scales(values, stored, g, fmt).astype(x.dtype)


@_fake_quantize.defjvp
def _straight_through(fmt: Format, primals, tangents):
    return _fake_quantize(fmt, *primals), tangents[0]
