"""`Layer`: what a front end finds out about one linear layer."""

from __future__ import annotations

import dataclasses
import math

from wush_jax.layers import trees
from wush_jax.layers.contraction import Contraction
from wush_jax.layers.stacking import StackAxes


@dataclasses.dataclass(frozen=True)
class Layer:
    """A parameter that an input is contracted with.

    Attributes:
      path: the parameter's own path in its tree, "layer_0/mlp/up/kernel", whatever its last name.
      contraction: how inputs meet it, in every call.
      kernel_shape: its shape without stacked axes.
      inputs: identities of the arrays it was called with; layers with equal ones share their input.
      stack_axes: where layers are stacked in it, see `wush_jax.layers.stacking`.
    """

    path: str
    contraction: Contraction
    kernel_shape: tuple[int, ...]
    inputs: tuple[int, ...]
    stack_axes: StackAxes = ()

    @property
    def name(self) -> str:
        """How rules, reports and errors call it, see `trees.layer_name`."""
        return trees.layer_name(self.path)

    @property
    def features(self) -> int:
        """K."""
        return self._size("k")

    @property
    def outputs(self) -> int:
        """N."""
        return self._size("n")

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Sizes of the parameter's own batch axes (experts)."""
        sizes = zip(self.kernel_shape, self.contraction.roles, strict=True)
        return tuple(n for n, role in sizes if role == "b")

    def _size(self, wanted: str) -> int:
        sizes = zip(self.kernel_shape, self.contraction.roles, strict=True)
        return math.prod(n for n, role in sizes if role == wanted)
