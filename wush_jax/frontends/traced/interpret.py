"""Runs a traced program in which some inputs are parameters, and asks a handler at each product.

A `Weight` stands for a parameter wherever the program hands it on. It holds the float numbers, or
the `QuantizedKernel` that replaces them, or both. What a handler records inside loops, branches and
rematerialised functions is carried out of them: what belongs to one layer of a stack comes out
stacked, all else is summed.
"""

from __future__ import annotations

import dataclasses
import itertools
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal

from wush_jax.frontends.traced import control, jaxprs, views
from wush_jax.frontends.traced.products import Product, product
from wush_jax.frontends.traced.records import Key, Records
from wush_jax.frontends.traced.views import View
from wush_jax.frontends.traced.weight import Weight, plain


@runtime_checkable
class Handler(Protocol):
    """What is done at each place that reads a parameter."""

    @property
    def inlines(self) -> bool:
        """Whether functions that read no parameter are stepped into as well, to follow inputs."""
        ...

    @property
    def combine(self) -> Callable[[Any, Any], Any] | None:
        """What two recorded values of one entry make; None for a handler that records nothing."""
        ...

    def product(
        self, run: Interpreter, found: Product, weight: Weight, x: Any, eqn: JaxprEqn
    ) -> Any:
        """The product's output; None to leave it to the program."""
        ...

    def read(
        self, run: Interpreter, weight: Weight, inputs: Sequence[Any], eqn: JaxprEqn, why: str
    ) -> list[Any] | None:
        """Outputs of any other operation that reads a parameter; None to leave it be."""
        ...


class Interpreter:
    """Runs programs for one handler.

    Attributes:
      records: what the handler recorded, by key.
      branch: which branches the program lies in; what is read in one is not read in another.
    """

    def __init__(self, handler: Handler, parent: Interpreter | None = None):
        self.handler = handler
        self.records = Records(handler.combine or (lambda first, second: second))
        self.branch: tuple[tuple[int, int], ...] = parent.branch if parent else ()
        self._loops = parent._loops if parent else itertools.count()
        self._sources: dict[int, Any] = parent._sources if parent else {}

    def child(self, records: Mapping[Key, Any] = types.MappingProxyType({})) -> Interpreter:
        """One for a program within this one's, which goes on from ``records``."""
        child = Interpreter(self.handler, self)
        child.records.update(records)
        return child

    def new_loop(self) -> int:
        """A number that no other loop has."""
        return next(self._loops)

    def initial(self, records: Callable[[], Mapping[Key, Any]]) -> dict[Key, Any]:
        """What a loop or branch that records ``records()`` starts from: zeros, or what there is."""
        if self.handler.combine is None:
            return {}
        return self.records.zeros(jax.eval_shape(records))

    def run(self, program: ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """The program's outputs; those that are parameters still are `Weight`s."""
        values: dict[Any, Any] = dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        values.update(zip(program.jaxpr.invars, inputs, strict=True))
        last = _last_uses(program)
        for at, eqn in enumerate(program.jaxpr.eqns):
            read = [v.val if isinstance(v, Literal) else values[v] for v in eqn.invars]
            if any(isinstance(each, Weight) for each in read):
                outputs = self._equation(eqn, read)
            elif self.handler.inlines and (inner := jaxprs.called(eqn)) is not None:
                outputs = self.run(inner, read)
            else:
                outputs = jaxprs.bind(eqn, read)
                if eqn.primitive.name in views.SAME or eqn.primitive.name in ("reshape", "squeeze"):
                    self._derive(eqn, read[0], outputs[0])
            values.update(zip(eqn.outvars, outputs, strict=True))
            for variable in last.get(at, ()):
                values.pop(variable, None)
        return [v.val if isinstance(v, Literal) else values[v] for v in program.jaxpr.outvars]

    def source(self, x: Any) -> Hashable:
        """Equal for values that are the same numbers read in the same branch, cast or not."""
        return self._identity(x), self.branch

    def origin_dtype(self, x: Any) -> Any:
        """The dtype that x had before it was cast."""
        held = self._sources.get(id(x))
        return x.dtype if held is None else held[2]

    def _identity(self, x: Any) -> Hashable:
        held = self._sources.get(id(x))
        return held[0] if held is not None else self._hold(x, id(x))

    def _hold(self, x: Any, identity: Hashable, dtype: Any = None) -> Hashable:
        # the value itself is held, so that no other gets its id
        self._sources[id(x)] = (identity, x, x.dtype if dtype is None else dtype)
        return identity

    def _derive(self, eqn: JaxprEqn, x: Any, out: Any) -> None:
        identity, shape = self._identity(x), tuple(out.shape)
        changed = eqn.primitive.name not in views.SAME
        self._hold(out, (identity, shape) if changed else identity, self.origin_dtype(x))

    def _equation(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        name = eqn.primitive.name
        if (again := control.TABLE.get(name)) is not None:
            return again(self, eqn, inputs)
        if (program := jaxprs.called(eqn)) is not None:
            if name in jaxprs.REMATERIALISED:
                return self._rematerialised(eqn, program, inputs)
            return self.run(program, inputs)
        seen = [each.view if isinstance(each, Weight) else None for each in inputs]
        weight = next(each for each in inputs if isinstance(each, Weight))
        found = product(eqn, seen)
        why = found if isinstance(found, str) else name
        if isinstance(found, Product):
            out = self.handler.product(self, found, weight, inputs[found.operand], eqn)
            return [out] if out is not None else self._as_is(eqn, inputs)
        alone = inputs[0] is weight and sum(view is not None for view in seen) == 1
        if alone and (view := views.step(eqn, weight.view)) is not None:
            return [self._moved(eqn, weight, view, inputs)]
        out = self.handler.read(self, weight, inputs, eqn, why)
        return out if out is not None else self._as_is(eqn, inputs)

    def _as_is(self, eqn: JaxprEqn, inputs: list[Any]) -> list[Any]:
        return jaxprs.bind(eqn, [plain(each) for each in inputs])

    def _moved(self, eqn: JaxprEqn, weight: Weight, view: View, inputs: list[Any]) -> Weight:
        value = None if weight.value is None else self._as_is(eqn, inputs)[0]
        index = list(weight.index)
        for pick in view.picks[len(weight.view.picks) :]:
            at = jaxprs.aval(eqn.invars[0]).ndim
            starts = inputs[1 : 1 + at]
            index.append(_traced_start(eqn, starts) if pick.kind == "traced" else pick.at)
        return dataclasses.replace(weight, view=view, value=value, index=tuple(index))

    def _rematerialised(self, eqn: JaxprEqn, program: ClosedJaxpr, inputs: list[Any]) -> list[Any]:
        arrays = [None if isinstance(each, Weight) else each for each in inputs]

        def function(arrays: list[Any]) -> Any:
            child = self.child()
            own = [w if isinstance(w, Weight) else x for w, x in zip(inputs, arrays, strict=True)]
            outputs = [plain(each) for each in child.run(program, own)]
            return outputs, dict(child.records)

        kept = jax.checkpoint(
            function, prevent_cse=eqn.params["prevent_cse"], policy=eqn.params["policy"]
        )
        outputs, records = kept(arrays)
        self.records.merge(records)
        return outputs


def _traced_start(eqn: JaxprEqn, starts: Sequence[Any]) -> Any:
    """Where a dynamic slice of size one starts along the axis that it picks from, clamped."""
    shape, sizes = jaxprs.aval(eqn.invars[0]).shape, eqn.params["slice_sizes"]
    axis = next(i for i, (size, n) in enumerate(zip(sizes, shape, strict=True)) if size != n)
    return jnp.clip(starts[axis], 0, shape[axis] - 1)


def _last_uses(program: ClosedJaxpr) -> Mapping[int, list[Any]]:
    """Equation -> variables that nothing reads after it, so that their values can go."""
    jaxpr = program.jaxpr
    kept = {v for v in jaxpr.outvars if not isinstance(v, Literal)}
    found: dict[int, list[Any]] = {}
    for at in range(len(jaxpr.eqns) - 1, -1, -1):
        for v in jaxpr.eqns[at].invars:
            if not isinstance(v, Literal) and v not in kept:
                kept.add(v)
                found.setdefault(at, []).append(v)
    return found
