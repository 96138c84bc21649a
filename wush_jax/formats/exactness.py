"""Powers of two that make a layer's numbers exact in a narrow floating point type.

An MXFP4 number is an E2M1 element times 2^e, e the exponent of its group. Times one power of two a
tensor, all of them are exact in

* E4M3, if all weights' e + offset lie in [-8, 6];
* E5M2, if all activations' e + shift lie in [-15, 13];
* float16 times 2^-5, if all weights' e + offset lie in [-18, 6].

The product of the two is then the product of the MXFP4 numbers times 2^(shift + offset), exactly.
`choose` picks shift and offset for the layers that read one array, and `exact_in` says what that
makes of the weights. The sum shift + offset is always `SUM`, so that the FP8 product is multiplied
with a constant that the matrix product takes for free.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Int32

from wush_jax import formats
from wush_jax.formats import Format

SUM = 8
E4M3 = (-8, 6)
E5M2 = (-15, 13)
FLOAT16 = (-18, 6)
HEADROOM = 8  # octaves left above the largest activation seen in calibration, where there is room
LEAST_HEADROOM = 3
_FLOAT16_TOP = 15

# What holds a layer's weights exactly, from narrow to wide: what `QuantizedKernel.exact_in` can be.
TYPES = ("float8", "float16", "float32")


class Range(NamedTuple):
    """Lowest and highest exponent of the non-zero groups of a tensor; (0, 0) if there is none."""

    low: int
    high: int

    def __or__(self, other: object) -> Range:
        assert isinstance(other, Range)
        return Range(min(self.low, other.low), max(self.high, other.high))


class Exponents(NamedTuple):
    """2^shift times the activations and 2^offset times the weights are what kernels hold."""

    shift: int
    offset: int


def of_groups(
    scales: Array, codes: Array, fmt: Format
) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """Exponents, lowest and highest, of an MXFP4 tensor's non-zero groups; traceable."""
    exponent = scales.astype(jnp.int32) - 127
    elements = formats.codes_to_values(codes, fmt).reshape(*scales.shape, fmt.group_size)
    return _range(exponent, (elements != 0).any(-1))


def of_values(x: Array) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    """floor(log2 |x|) of the smallest and the largest non-zero x; traceable."""
    bits = formats.magnitude_bits(x.astype(jnp.float32))
    return _range((bits >> 23) - 127, bits != 0)


def _range(exponent: Array, used: Array) -> tuple[Int32[Array, ""], Int32[Array, ""]]:
    low = jnp.min(jnp.where(used, exponent, 1 << 20))
    high = jnp.max(jnp.where(used, exponent, -(1 << 20)))
    return jnp.where(used.any(), low, 0), jnp.where(used.any(), high, 0)


def choose(weights: Range, activations: Range, fmt: Format, act_format: Format | None) -> Exponents:
    """Shift and offset of the layers that share an input; ranges are over all of them.

    MXFP4 activations: the offset that leaves `HEADROOM` octaves above the activations, moved into
    the weights' E4M3 window where there is one. NVFP4 numbers are exact in float16 as they are.
    Activations that stay in floating point are shifted to leave `HEADROOM` octaves in float16.
    """
    if fmt.name == "nvfp4" and act_format is not None:
        return Exponents(0, 0)
    lowest, highest = E4M3[0] - weights.low, E4M3[1] - weights.high
    if act_format is None:
        offset = 0 if fmt.name == "nvfp4" else highest
        return Exponents(_FLOAT16_TOP - HEADROOM - activations.high, offset)
    wanted = activations.high + SUM - (E5M2[1] - HEADROOM)
    offset = min(max(wanted, lowest), highest)
    return Exponents(SUM - offset, offset)


def exact_in(
    weights: Range,
    activations: Range,
    exponents: Exponents,
    fmt: Format,
    act_format: Format | None,
) -> str:
    """The narrowest of `TYPES` in which the weights are exact and the activations have room."""
    if fmt.name == "nvfp4":
        return "float16" if act_format is None or act_format.name == "nvfp4" else "float32"
    if fmt.name != "mxfp4" or (act_format is not None and act_format.name != "mxfp4"):
        return "float32"
    room = E5M2[1] - (activations.high + exponents.shift)
    low, high = weights.low + exponents.offset, weights.high + exponents.offset
    fits_fp8 = low >= E4M3[0] and high <= E4M3[1] and room >= LEAST_HEADROOM
    if act_format is not None and fits_fp8:
        return "float8"
    roomy = act_format is None or room >= LEAST_HEADROOM
    return "float16" if low >= FLOAT16[0] and high <= FLOAT16[1] and roomy else "float32"


class Held(NamedTuple):
    """How fast kernels hold the numbers of the layers that share an input.

    Attributes:
      exponents: of each slice of a stack.
      exact_in: by module path, the narrowest of `TYPES` for all of its slices.
    """

    exponents: list[Exponents]
    exact_in: dict[str, str]


def hold(
    weights: Mapping[str, Sequence[Range]],
    activations: Mapping[str, Sequence[Range]],
    fmt: Format,
    act_format: Format | None,
) -> Held:
    """`choose` and `exact_in` for layers that share their inputs.

    Args:
      weights, activations: by module path, one range for each slice of a stack.
    """
    chosen = []
    worst = dict.fromkeys(weights, 0)
    for i in range(len(next(iter(weights.values())))):
        seen = functools.reduce(operator.or_, [ranges[i] for ranges in activations.values()])
        both = functools.reduce(operator.or_, [ranges[i] for ranges in weights.values()])
        chosen.append(choose(both, seen, fmt, act_format))
        for path, ranges in weights.items():
            kind = exact_in(ranges[i], seen, chosen[-1], fmt, act_format)
            worst[path] = max(worst[path], TYPES.index(kind))
    return Held(chosen, {path: TYPES[i] for path, i in worst.items()})
