"""Activations between two blocks: on the host as NumPy arrays, on the device only while used.

A calibration set's activations (tokens times features, some gigabytes) need not fit beside a model
on its device. `Activations` holds those that enter one block, batch by batch; assigning a batch's
output to its place drops its input, so that two blocks' activations never exist at once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding


@dataclasses.dataclass(frozen=True)
class Kept:
    """An array on the host.

    Attributes:
      array: in the device array's own dtype.
      sharding: where it goes back to; None for the default device.
    """

    array: np.ndarray
    sharding: Sharding | None


def to_host(tree: Any) -> Any:
    """The tree with each array as a `Kept`. All copies run at once."""

    def keep(leaf: Any, array: np.ndarray) -> Kept:
        placed = isinstance(leaf, jax.Array) and leaf.committed
        return Kept(np.asarray(array), leaf.sharding if placed else None)

    return jax.tree.map(keep, tree, jax.device_get(tree))


def to_device(tree: Any) -> Any:
    """The inverse of `to_host`: each array where it was."""
    return jax.tree.map(lambda kept: jax.device_put(kept.array, kept.sharding), tree)


class Activations:
    """A list of batches (pytrees of arrays), read as device arrays as often as wanted.

    Attributes:
      offload: keep the batches on the host; else they stay device arrays.
    """

    def __init__(self, offload: bool = True):
        self.offload = offload
        self._batches: list[Any] = []

    def append(self, batch: Any) -> None:
        self._batches.append(to_host(batch) if self.offload else batch)

    def __setitem__(self, i: int, batch: Any) -> None:
        self._batches[i] = to_host(batch) if self.offload else batch

    def __getitem__(self, i: int) -> Any:
        return to_device(self._batches[i]) if self.offload else self._batches[i]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))
