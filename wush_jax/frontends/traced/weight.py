"""`Weight`: a parameter at some place in a program."""

from __future__ import annotations

import dataclasses
from typing import Any

from wush_jax.frontends.traced.views import View
from wush_jax.layers.quantized_kernel import QuantizedKernel


@dataclasses.dataclass(frozen=True)
class Weight:
    """What stands for a parameter wherever the program hands it on.

    Attributes:
      view: what the place is of the parameter.
      value: the float numbers, as the program has them there; None: only the kernel is there.
      kernel: the quantized parameter, whole; None: it is float.
      index: entries that were picked, in the order of ``view.picks``.
    """

    view: View
    value: Any = None
    kernel: QuantizedKernel | None = None
    index: tuple[Any, ...] = ()


def plain(value: Any) -> Any:
    """The numbers of a value, parameter or not.

    Raises:
      ValueError: it is a parameter of which only the quantized kernel is there.
    """
    if not isinstance(value, Weight):
        return value
    if value.value is None:
        raise ValueError(
            f"{value.view.name}: this quantized weight leaves the part of the program where it can "
            "be followed (it is returned, or carried through a loop that changes it); keep it in "
            f"float: Rule({value.view.name!r}, skip=True)"
        )
    return value.value
