"""What a value of a program is of a parameter: the parameter itself with its axes re-arranged.

A `View` says which parts of the parameter's axes make up each axis of the value. It follows a
parameter through operations that only re-arrange, cast or pick, so that a product far down the
program can be told in the parameter's own axes. Axes of size one carry nothing and are not tracked.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jax.extend.core import JaxprEqn

from wush_jax.frontends.traced import jaxprs

#: Operations whose value is their first input's, whatever its dtype or place.
SAME = frozenset(
    {
        "convert_element_type",
        "copy",
        "copy_p",
        "device_put",
        "mesh_cast",
        "name",
        "optimization_barrier",
        "pvary",
        "reduce_precision",
        "reshard",
        "sharding_constraint",
        "stop_gradient",
    }
)


class Piece(NamedTuple):
    """A part of a parameter's axis: ``size`` steps of ``stride`` along ``axis``."""

    axis: int
    size: int
    stride: int


class Pick(NamedTuple):
    """One entry of a parameter's axis.

    Attributes:
      axis: the parameter's.
      kind: "static", entry ``at``; "scan", the entry of the running step of loop ``at``; "traced",
        an entry that the program computes.
      at: see ``kind``; 0 for "traced".
    """

    axis: int
    kind: Literal["static", "scan", "traced"]
    at: int


class Span(NamedTuple):
    """A range of a parameter's axis."""

    axis: int
    start: int
    stop: int


Axes = tuple[tuple[Piece, ...], ...]


@dataclasses.dataclass(frozen=True)
class View:
    """A value whose numbers are a parameter's.

    Attributes:
      name: the parameter's.
      shape: of the whole parameter.
      axes: of the value; the pieces merged in each, outermost first.
      picks: axes of the parameter of which the value holds one entry.
      spans: axes of which it holds a range.
    """

    name: str
    shape: tuple[int, ...]
    axes: Axes
    picks: tuple[Pick, ...] = ()
    spans: tuple[Span, ...] = ()

    @classmethod
    def whole(cls, name: str, shape: Sequence[int]) -> View:
        """The parameter itself."""
        axes = tuple((Piece(i, n, 1),) if n != 1 else () for i, n in enumerate(shape))
        return cls(name, tuple(shape), axes)

    def scanned(self, loop: int) -> View | None:
        """One step's slice along the first axis; None where that is no single axis."""
        return self._picked(0, "scan", loop, keep=False)

    def _picked(
        self, at: int, kind: Literal["static", "scan", "traced"], entry: int, *, keep: bool
    ) -> View | None:
        pieces = self.axes[at]
        if len(pieces) > 1 or any(
            span.axis == piece.axis for piece in pieces for span in self.spans
        ):
            return None
        rest = self.axes[:at] + (((),) if keep else ()) + self.axes[at + 1 :]
        if not pieces:  # of size one: the parameter's axis, where one can be told, is not tracked
            return dataclasses.replace(self, axes=rest)
        (piece,) = pieces
        if piece.size != self.shape[piece.axis]:
            return None
        pick = Pick(piece.axis, kind, entry)
        return dataclasses.replace(self, axes=rest, picks=(*self.picks, pick))


def step(eqn: JaxprEqn, view: View) -> View | None:
    """The view after an operation on one value alone; None if the operation makes other numbers."""
    name = eqn.primitive.name
    if name in SAME:
        return view
    rule = _RULES.get(name)
    return None if rule is None else rule(eqn.params, view, eqn)


def split(axes: Axes, sizes: Sequence[int]) -> Axes | None:
    """Axes after a reshape to ``sizes``; None where pieces do not split so."""
    pieces = [piece for axis in axes for piece in axis]
    out = []
    for size in sizes:
        taken: list[Piece] = []
        while math.prod(piece.size for piece in taken) < size:
            if not pieces:
                return None
            piece = pieces.pop(0)
            missing, uneven = divmod(size, math.prod(p.size for p in taken))
            if uneven or (piece.size % missing and missing % piece.size):
                return None
            if piece.size > missing:
                inner = piece.size // missing
                pieces.insert(0, piece._replace(size=inner))
                piece = Piece(piece.axis, missing, piece.stride * inner)
            taken.append(piece)
        if math.prod(piece.size for piece in taken) != size:
            return None
        out.append(tuple(taken))
    return None if pieces else tuple(out)


def _transpose(params: Mapping[str, Any], view: View, _: JaxprEqn) -> View:
    return dataclasses.replace(view, axes=tuple(view.axes[i] for i in params["permutation"]))


def _reshape(params: Mapping[str, Any], view: View, _: JaxprEqn) -> View | None:
    if params.get("dimensions") is not None:
        return None
    axes = split(view.axes, params["new_sizes"])
    return None if axes is None else dataclasses.replace(view, axes=axes)


def _squeeze(params: Mapping[str, Any], view: View, _: JaxprEqn) -> View:
    gone = params["dimensions"]
    kept = tuple(axis for i, axis in enumerate(view.axes) if i not in gone)
    return dataclasses.replace(view, axes=kept)


def _expand(params: Mapping[str, Any], view: View, eqn: JaxprEqn) -> View | None:
    axes: list[tuple[Piece, ...]] = [()] * len(params["shape"])
    for i, at in enumerate(params["broadcast_dimensions"]):
        axes[at] = view.axes[i]
    sizes = [math.prod(piece.size for piece in axis) for axis in axes]
    if sizes != list(params["shape"]):  # repeats numbers
        return None
    return dataclasses.replace(view, axes=tuple(axes))


def _slice(params: Mapping[str, Any], view: View, eqn: JaxprEqn) -> View | None:
    if any(stride != 1 for stride in params["strides"] or ()):
        return None
    shape = jaxprs.aval(eqn.invars[0]).shape
    out: View | None = view
    for i, (start, stop) in enumerate(
        zip(params["start_indices"], params["limit_indices"], strict=True)
    ):
        if out is None or (start, stop) == (0, shape[i]):
            continue
        one = stop - start == 1
        out = out._picked(i, "static", start, keep=True) if one else _span(out, i, start, stop)
    return out


def _span(view: View, at: int, start: int, stop: int) -> View | None:
    pieces = view.axes[at]
    if len(pieces) != 1 or pieces[0].size != view.shape[pieces[0].axis]:
        return None
    axis = pieces[0].axis
    axes = (*view.axes[:at], (Piece(axis, stop - start, 1),), *view.axes[at + 1 :])
    return dataclasses.replace(view, axes=axes, spans=(*view.spans, Span(axis, start, stop)))


def _dynamic_slice(params: Mapping[str, Any], view: View, eqn: JaxprEqn) -> View | None:
    shape = jaxprs.aval(eqn.invars[0]).shape
    out: View | None = view
    for i, (size, whole) in enumerate(zip(params["slice_sizes"], shape, strict=True)):
        if out is None or size == whole:
            continue
        out = out._picked(i, "traced", 0, keep=True) if size == 1 else None
    return out


_RULES: dict[str, Callable[[Mapping[str, Any], View, JaxprEqn], View | None]] = {
    "broadcast_in_dim": _expand,
    "dynamic_slice": _dynamic_slice,
    "reshape": _reshape,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}
