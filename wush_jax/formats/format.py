"""The table of number formats: which exist, and the constants of each.

A *format* is an element grid, a group size G along the last axis, a scale type, and a *rule* that
picks the scale of a group, amax being its largest magnitude, and the global scale g:

======  ==  =========  ======  =======  ==========================================================
name    G   elements   scales  rule     scale of a group, global scale
======  ==  =========  ======  =======  ==========================================================
mxfp4   32  E2M1       E8M0    wush     2^floor(log2 amax), g = 1/3: amax in [3, 6), nothing clips
mxfp4   32  E2M1       E8M0    ocp      2^(floor(log2 amax) - 2), g = 1: clips above 6
mxfp4   32  E2M1       E8M0    ceil     smallest power of two that does not clip, g = 1
nvfp4   16  E2M1       E4M3    wush     amax / 6 / g rounded and saturated, g = 1/10
nvfp4   16  E2M1       E4M3    nvidia   the same, g = amax of the tensor / (6 * 448)
int4    32  mid-rise   bf16    wush     2.5139 * 2/15 * root mean square, g = 1
int4    32  mid-tread  bf16    absmax   amax / 7, g = 1
int8    32  integers   bf16    absmax   amax / 127, g = 1
======  ==  =========  ======  =======  ==========================================================

References: OCP Microscaling Formats (MX) v1.0; arXiv 2512.00956 (the `wush` rules); NVIDIA,
"Pretraining Large Language Models with NVFP4", arXiv 2509.25149 (two-level NVFP4 scales).
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np

from wush_jax.formats import elements

_THIRD, _TENTH = float(np.float32(1 / 3)), float(np.float32(1 / 10))
# name: (group size, bits of an element, bits of a scale,
#        {rule: (element grid, global scale)}, the default rule first)
_Rules = dict[str, tuple[str, float | None]]
_FORMATS: dict[str, tuple[int, int, int, _Rules]] = {
    "mxfp4": (32, 4, 8, {"wush": ("e2m1", _THIRD), "ocp": ("e2m1", 1.0), "ceil": ("e2m1", 1.0)}),
    "nvfp4": (16, 4, 8, {"wush": ("e2m1", _TENTH), "nvidia": ("e2m1", None)}),
    "int4": (32, 4, 16, {"wush": ("midrise", 1.0), "absmax": ("midtread", 1.0)}),
    "int8": (32, 8, 16, {"absmax": ("int8", 1.0)}),
}


@dataclasses.dataclass(frozen=True)
class Format:
    """A number format: hashable, static under jit. `get_format` fills in the default rule.

    Raises:
        ValueError: no such format or rule.
    """

    name: str
    rule: str

    def __post_init__(self):
        if self.name not in _FORMATS or self.rule not in _FORMATS[self.name][3]:
            known = ", ".join(f"{name}/{rule}" for name, f in _FORMATS.items() for rule in f[3])
            raise ValueError(f"unknown format {self}; there are {known}")

    def __str__(self) -> str:
        return f"{self.name}/{self.rule}"

    @property
    def group_size(self) -> int:
        """G: consecutive elements along the last axis that share a scale."""
        return _FORMATS[self.name][0]

    @property
    def element_bits(self) -> int:
        """4 or 8."""
        return _FORMATS[self.name][1]

    @property
    def packed(self) -> bool:
        """Whether a byte holds two codes."""
        return self.element_bits == 4

    @property
    def scale_dtype(self):
        """uint8 (the bits of an E8M0 or E4M3 number) or bfloat16."""
        return jnp.uint8 if _FORMATS[self.name][2] == 8 else jnp.bfloat16

    @property
    def global_scale(self) -> float | None:
        """The float32 multiplier that the rule fixes for every tensor; None: derived from data."""
        return _FORMATS[self.name][3][self.rule][1]

    @property
    def grid(self) -> elements.Grid:
        """The element grid: how to round, encode and decode."""
        return elements.GRIDS[_FORMATS[self.name][3][self.rule][0]]

    @property
    def bits_per_value(self) -> float:
        """Storage, scales included."""
        return self.element_bits + _FORMATS[self.name][2] / self.group_size

    @property
    def exact_in_bf16(self) -> bool:
        """Whether element times group scale is always a bfloat16."""
        return self.name in ("mxfp4", "nvfp4")


def get_format(spec: str | Format) -> Format:
    """The format of "name" (default rule) or "name/rule"; a Format comes back as it is.

    Raises:
        ValueError: no such format or rule; the message lists what exists.
    """
    if isinstance(spec, Format):
        return spec
    name, slash, rule = str(spec).partition("/")
    if not slash and name in _FORMATS:
        rule = next(iter(_FORMATS[name][3]))
    return Format(name, rule)


def activation_scale(act_format: Format, format: Format) -> float | None:
    """The global scale of activations that meet weights in ``format``; None: derived from data.

    Where both have the same format it is the constant nearest to the rule's with which the product
    of the two global scales is a power of two (3/8 beside 1/3, 10/128 beside 1/10): a matrix
    product then needs no rounding factor. It is a gauge of T, which the theory leaves free.
    """
    own, other = act_format.global_scale, format.global_scale
    if own is None or other is None or act_format.name != format.name:
        return own
    power = 2.0 ** round(math.log2(own * other))
    return float(np.float32(power / other))
