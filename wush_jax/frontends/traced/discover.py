"""Which parameters of a program are the weights of linear layers, and what reads the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from wush_jax.frontends.protocol import Discovery
from wush_jax.frontends.traced.interpret import Interpreter
from wush_jax.frontends.traced.products import Product
from wush_jax.frontends.traced.program import Program
from wush_jax.frontends.traced.weight import Weight
from wush_jax.layers.layer import Layer
from wush_jax.layers.stacking import StackAxes
from wush_jax.layers.trees import layer_name

NEVER_READ = "never read"


class Call(NamedTuple):
    """One product with a parameter, and the identity of its input."""

    found: Product
    source: Hashable


class Discovering:
    """The handler that notes products and other reads.

    Attributes:
      calls: parameter's path -> its products.
      reads: path -> what else reads it.
    """

    inlines = True
    combine = None

    def __init__(self) -> None:
        self.calls: dict[str, list[Call]] = {}
        self.reads: dict[str, list[str]] = {}

    def product(
        self, run: Interpreter, found: Product, weight: Weight, x: Any, eqn: JaxprEqn
    ) -> Any:
        path = weight.view.name
        origin = run.origin_dtype(x)
        if not jnp.issubdtype(x.dtype, jnp.floating) or not jnp.issubdtype(origin, jnp.floating):
            self.reads.setdefault(path, []).append(f"product with an input of {origin}")
        else:
            self.calls.setdefault(path, []).append(Call(found, run.source(x)))

    def read(
        self, run: Interpreter, weight: Weight, inputs: Sequence[Any], eqn: JaxprEqn, why: str
    ) -> list[Any] | None:
        for each in inputs:
            if isinstance(each, Weight):
                self.reads.setdefault(each.view.name, []).append(why)


def discover(program: Program, inputs: Sequence[Any], wanted: Callable[[str], bool]) -> Discovery:
    """The linear layers of a program, and why other parameters are none.

    Args:
      inputs: of the program; parameters as `Weight` of arrays or `jax.ShapeDtypeStruct`.
      wanted: by a layer's name, whether it is to be quantized.

    Raises:
      ValueError: a wanted layer's products contract its weight in different ways.
    """
    handler = Discovering()
    weights = [each for each in inputs if isinstance(each, Weight)]

    def abstract(arrays: Sequence[Any]) -> None:
        own = [
            Weight(each.view, value) if isinstance(each, Weight) else value
            for each, value in zip(inputs, arrays, strict=True)
        ]
        program.run(handler, own)

    jax.eval_shape(abstract, [w.value if isinstance(w, Weight) else w for w in inputs])
    layers, refused = {}, {}
    for weight in weights:
        path = weight.view.name
        name, calls = layer_name(path), handler.calls.get(path, [])
        if others := list(dict.fromkeys(handler.reads.get(path, []))):
            refused[name] = ("also " if calls else "") + f"read by {', '.join(others)}"
        elif not calls:
            refused[name] = NEVER_READ
        elif isinstance(layer := _layer(path, calls), str):
            if wanted(name):
                raise ValueError(f"{name}: {layer}; skip it by a Rule")
            refused[name] = layer
        else:
            layers[name] = layer
    return Discovery(layers, refused)


def _layer(path: str, calls: Sequence[Call]) -> Layer | str:
    first = calls[0].found
    picks = [tuple((p.axis, p.kind) for p in call.found.view.picks) for call in calls]
    same = all(call.found.roles == first.roles for call in calls)
    if not same or any(each != picks[0] for each in picks):
        return "the program contracts this weight in different ways"
    layers = stacked_axes(calls)
    shape = first.view.shape
    own = tuple(n for axis, n in enumerate(shape) if axis not in layers)
    inputs = tuple(hash(call.source) for call in calls)
    return Layer(
        path, first.contraction(layers), own, inputs, _positions(layers, first, len(shape))
    )


def stacked_axes(calls: Sequence[Call]) -> tuple[int, ...]:
    """Axes along which a parameter holds layers, in the order in which records come out.

    An axis of which constant indices pick entries holds layers where these read different inputs,
    and outputs of one layer where they read the same.
    """
    view = calls[0].found.view
    apart = len({call.source for call in calls}) > 1
    kinds = ("static", "scan", "traced") if apart else ("scan", "traced")
    return tuple(pick.axis for kind in kinds for pick in view.picks if pick.kind == kind)


def _positions(layers: tuple[int, ...], found: Product, ndim: int) -> StackAxes:
    """`QuantizedKernel.stack_axes`: from the back where leaves have too few axes in front."""
    leaf = 2 + len(layers) + found.stacked(layers).count("b")
    return tuple(axis if axis < leaf else axis - ndim for axis in layers)


def assembled(
    records: Mapping[Any, Any], layers: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> dict[str, Any]:
    """Name -> record with leaves [*stack, ...], entries of constant indices put together.

    Args:
      records: by `records.Key`.
      layers: name -> stacked axes, shape of the whole parameter.
    """
    found: dict[str, Any] = {}
    for key in records:
        if key.name in found:
            continue
        axes, shape = layers[key.name]
        static = [axis for axis, _ in key.static if axis in axes]
        sizes = [shape[axis] for axis in static]
        of = {other.static: records[other] for other in records if other.name == key.name}
        zero = jax.tree.map(jnp.zeros_like, records[key])
        entries = [
            of.get(tuple(zip(static, at, strict=True)), zero)
            for at in itertools.product(*map(range, sizes))
        ]
        lead = tuple(sizes)
        found[key.name] = jax.tree.map(
            lambda *leaves, lead=lead: jnp.stack(leaves).reshape(lead + leaves[0].shape), *entries
        )
    return found
