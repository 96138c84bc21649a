"""Products of an input with a parameter: `dot_general`, and convolutions that are one.

A product is told in the parameter's own axes: which are contracted (k), which come out (n), which
are in input and output alike (b), of which a loop or an index picks one entry (s), and of which a
constant index does (?), which may be layers or outputs. `Product.rows_of` brings an input into the
axes [*b, *free, *k] and `Product.output` brings outputs [*b, *free, *n] into the operation's own.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from wush_jax.frontends.traced import jaxprs, windows
from wush_jax.frontends.traced.views import Piece, View
from wush_jax.layers.contraction import Contraction

Reshape = Callable[[Array], Array]


@dataclasses.dataclass(frozen=True)
class Product:
    """One operation that contracts an input with a parameter.

    Attributes:
      view: the parameter, as the operation reads it.
      operand: which input of the operation x is.
      roles: one of k, n, b, s, ? for each axis of the parameter.
      contracted, batched: axes of x (after ``before``), and the view's pieces that they meet.
      free: axes of x that meet nothing.
      new: pieces of each axis of the view that comes out.
      first: whether the view's axes come out before those of x.
      before, after: what is done to x first, and to the output last.
    """

    view: View
    operand: int
    roles: str
    contracted: tuple[tuple[int, tuple[Piece, ...]], ...]
    batched: tuple[tuple[int, tuple[Piece, ...]], ...]
    free: tuple[int, ...]
    new: tuple[tuple[Piece, ...], ...]
    first: bool = False
    before: Reshape | None = None
    after: Reshape | None = None

    def stacked(self, layers: Sequence[int]) -> str:
        """Roles of the parameter's own axes where those of ``layers`` are stacked; ? is n."""
        own = (role for axis, role in enumerate(self.roles) if axis not in layers)
        return "".join("n" if role == "?" else role for role in own)

    def contraction(self, layers: Sequence[int]) -> Contraction:
        """How `canonical` inputs meet the kernel; ``layers`` are the axes that are stacked."""
        roles = self.stacked(layers)
        labels = [chr(ord("A") + i) for i in range(len(roles) + len(self.free))]
        kernel, free = labels[: len(roles)], labels[len(roles) :]

        def of(role: str) -> list[str]:
            return [label for label, r in zip(kernel, roles, strict=True) if r == role]

        x, out = of("b") + free + of("k"), of("b") + free + of("n")
        return Contraction("".join(x), "".join(kernel), "".join(out))

    def canonical(self, x: Array) -> Array:
        """x as [*b, *free, *k], one axis for each of the parameter's, in their order."""
        x = x if self.before is None else self.before(x)
        met = dict((*self.contracted, *self.batched))
        sizes: list[int] = []
        where: dict[Piece | int, int] = {}  # piece, or free axis of x -> axis of the split x
        for axis, size in enumerate(x.shape):
            for piece in met.get(axis, ()):
                where[piece] = len(sizes)
                sizes.append(piece.size)
            if axis not in met:
                where[axis] = len(sizes)
                sizes.append(size)
        batched = sorted(p for _, pieces in self.batched for p in _outer_first(pieces))
        contracted = sorted(p for _, pieces in self.contracted for p in _outer_first(pieces))
        order = [*map(_piece, batched), *self.free, *map(_piece, contracted)]
        x = _transposed(x.reshape(sizes), [where[each] for each in order])
        free = x.shape[len(batched) : len(batched) + len(self.free)]
        return x.reshape(*self._sizes("b"), *free, *self._sizes("k"))

    def output(self, y: Array, layers: Sequence[int]) -> Array:
        """The operation's output, from [*b, *free, *n], one axis for each of the parameter's."""
        kept = len(self._sizes("b")) + len(self.free)
        axes = [a for a, r in enumerate(self.roles) if r in "n?" and a not in layers]
        for pick in self.view.picks:
            if pick.axis in axes:
                at = kept + axes.index(pick.axis)
                y = jnp.expand_dims(jnp.take(y, pick.at, axis=at), at)
        for span in self.view.spans:
            at = kept + axes.index(span.axis)
            y = y[(slice(None),) * at + (slice(span.start, span.stop),)]
        batched = [_piece(k) for k in sorted(p for _, ps in self.batched for p in _outer_first(ps))]
        new = [_piece(k) for k in sorted(p for pieces in self.new for p in _outer_first(pieces))]
        split: list[Piece | int] = [*batched, *self.free, *new]
        free = dict(zip(self.free, y.shape[len(self._sizes("b")) : kept], strict=True))
        sizes = {each: free[each] if isinstance(each, int) else each.size for each in split}
        y = y.reshape([sizes[each] for each in split])
        first = [pieces for _, pieces in self.batched]
        free_axes = [(axis,) for axis in self.free]
        rest = [*self.new, *free_axes] if self.first else [*free_axes, *self.new]
        groups: list[tuple[Piece | int, ...]] = [*first, *rest]
        y = _transposed(y, [split.index(each) for group in groups for each in group])
        y = y.reshape([math.prod(sizes[each] for each in group) for group in groups])
        return y if self.after is None else self.after(y)

    def _sizes(self, role: str) -> list[int]:
        return [n for n, r in zip(self.view.shape, self.roles, strict=True) if r == role]


def product(eqn: JaxprEqn, views: Sequence[View | None]) -> Product | str | None:
    """The product that an operation is.

    Args:
      views: of its inputs; None for what is no parameter.

    Returns:
      None where the operation is no product; a reason where it is one that cannot be rewritten.
    """
    name = eqn.primitive.name
    if name not in ("dot_general", "conv_general_dilated"):
        return None
    at = next(i for i, view in enumerate(views) if view is not None)
    view = views[at]
    assert view is not None
    if len(views) != 2 or views[1 - at] is not None:
        return f"{name} of two parameters"
    shape = jaxprs.aval(eqn.invars[1 - at]).shape
    if name == "dot_general":
        contract, batch = eqn.params["dimension_numbers"]
        pairs = [list(zip(dims[1 - at], dims[at], strict=True)) for dims in (contract, batch)]
        return _build(view, 1 - at, len(shape), pairs[0], pairs[1], first=at == 0)
    if at == 0:
        return "convolution of a parameter"
    window = windows.of(eqn)
    if isinstance(window, str):
        return window
    found = _build(view, 0, window.ndim, window.contracted, [])
    if isinstance(found, str):
        return found
    return dataclasses.replace(found, before=window.split, after=window.join)


def _build(
    view: View,
    operand: int,
    ndim: int,
    contracted: Sequence[tuple[int, int]],
    batched: Sequence[tuple[int, int]],
    first: bool = False,
) -> Product | str:
    """From pairs (axis of x, axis of the view) that meet."""
    own = {i for _, i in (*contracted, *batched)}
    new = tuple(axis for i, axis in enumerate(view.axes) if i not in own)
    met = {
        "k": [view.axes[i] for _, i in contracted],
        "b": [view.axes[i] for _, i in batched],
        "n": list(new),
    }
    roles = ["n"] * len(view.shape)  # an axis of size one that nobody sees
    seen: dict[int, str] = {pick.axis: "?" if pick.kind == "static" else "s" for pick in view.picks}
    for role, groups in met.items():
        for piece in (piece for pieces in groups for piece in pieces):
            if seen.setdefault(piece.axis, role) != role:
                return f"axis {piece.axis} is in part contracted and in part not"
    for axis, role in seen.items():
        roles[axis] = role
    if "k" not in roles:
        return "product that contracts nothing"
    if any(roles[span.axis] != "n" for span in view.spans):
        return "product with a part of its features"
    used = {axis for axis, _ in (*contracted, *batched)}
    return Product(
        view,
        operand,
        "".join(roles),
        tuple((axis, view.axes[i]) for axis, i in contracted),
        tuple((axis, view.axes[i]) for axis, i in batched),
        tuple(axis for axis in range(ndim) if axis not in used),
        new,
        first,
    )


def _outer_first(pieces: Sequence[Piece]) -> list[tuple[int, int, int]]:
    """Keys that sort pieces by the parameter's axis, the outermost of each first."""
    return [(piece.axis, -piece.stride, piece.size) for piece in pieces]


def _piece(key: tuple[int, int, int]) -> Piece:
    axis, stride, size = key
    return Piece(axis, size, -stride)


def _transposed(x: Any, order: Sequence[int]) -> Any:
    return x if list(order) == sorted(order) else x.transpose(order)
