"""Axes that ``nn.scan`` and ``nn.vmap`` over layers add to every variable.

``stack_axes`` are positions in the stacked array, as in Flax's ``variable_axes``: counted from
the front if they are zero or more, from the back if negative. Arrays of any rank follow from it.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

StackAxes = tuple[int, ...]


def positions(stack_axes: StackAxes, ndim: int) -> tuple[int, ...]:
    """Where the stacked axes are in a stacked array of ``ndim`` axes."""
    return tuple(axis % ndim for axis in stack_axes)


def to_front(leaf: Array | np.ndarray, stack_axes: StackAxes) -> Array:
    """A stacked array with its stacked axes first."""
    return jnp.moveaxis(leaf, positions(stack_axes, leaf.ndim), range(len(stack_axes)))


def from_front(leaf: Array, stack_axes: StackAxes) -> Array:
    """The inverse of `to_front`."""
    return jnp.moveaxis(leaf, range(len(stack_axes)), positions(stack_axes, leaf.ndim))
