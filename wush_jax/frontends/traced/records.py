"""What handlers record of layers while a program runs, and how it leaves loops.

Values are pytrees. Entries of the same key are combined; entries of one layer of a stack come out
of the scan over the stack with an axis in front.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from wush_jax.frontends.traced.views import View


class Key(NamedTuple):
    """Whose value it is.

    Attributes:
      name: the parameter's.
      static: entries that constant indices picked, (axis, entry).
      loops: scans over the parameter that are still open, outermost first.
    """

    name: str
    static: tuple[tuple[int, int], ...]
    loops: tuple[int, ...]

    @classmethod
    def of(cls, name: str, view: View, layers: tuple[int, ...]) -> Key:
        """The key of the entry that ``view`` is; ``layers`` are the axes that are stacked."""
        static = tuple(
            (p.axis, p.at) for p in view.picks if p.kind == "static" and p.axis in layers
        )
        return cls(name, static, tuple(p.at for p in view.picks if p.kind == "scan"))

    def without(self, loop: int) -> Key:
        """The key outside ``loop``."""
        return self._replace(loops=tuple(each for each in self.loops if each != loop))


class Records(dict[Key, Any]):
    """Key -> value.

    Attributes:
      combine: what two values of one key make.
    """

    def __init__(self, combine: Callable[[Any, Any], Any]):
        super().__init__()
        self.combine = combine

    def add(self, key: Key, value: Any) -> None:
        """Combines a value with what there is of its key."""
        self[key] = self.combine(self[key], value) if key in self else value

    def merge(self, others: Mapping[Key, Any]) -> None:
        """`add` of each."""
        for key, value in others.items():
            self.add(key, value)

    def zeros(self, shapes: Mapping[Key, Any]) -> dict[Key, Any]:
        """Values that add nothing, of the given shapes; what there is already instead of these."""
        return {key: self[key] if key in self else _zeros(shape) for key, shape in shapes.items()}


def _zeros(shape: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shape)
