"""Loops and branches with parameters in them: run again, with what handlers record carried out."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, JaxprEqn

from wush_jax.frontends.traced import jaxprs
from wush_jax.frontends.traced.records import Key
from wush_jax.frontends.traced.weight import Weight, plain

Run = Any  # the Interpreter, which imports this module


def scan(run: Run, eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """A scan. A stacked weight without float numbers stays whole beside the loop, with an index."""
    p = eqn.params
    program, length = jaxprs.closed(p["jaxpr"]), p["length"]
    first, carried = jaxprs.scanned(eqn)
    last = first + carried
    consts, xs = inputs[:first], inputs[last:]
    carry, fixed = _carried(program, inputs[first:last], first)
    loop = run.new_loop()
    views = [x.view.scanned(loop) if isinstance(x, Weight) else None for x in xs]
    xs = [plain(x) if v is None else x for x, v in zip(xs, views, strict=True)]
    arrays = [x.value if isinstance(x, Weight) else x for x in xs]

    def body(state: Any, step: Any) -> Any:
        carry, totals = state
        slices, at = step
        child = run.child(totals)
        own = [
            dataclasses.replace(x, view=view, value=now, index=(*x.index, at)) if view else now
            for x, view, now in zip(xs, views, slices, strict=True)
        ]
        outputs = child.run(program, [*consts, *_with(fixed, carry), *own])
        carried = [None if w else plain(y) for w, y in zip(fixed, outputs, strict=False)]
        ys = [plain(y) for y in outputs[len(carry) :]]
        stacked = {key: child.records.pop(key) for key in list(child.records) if loop in key.loops}
        return (carried, dict(child.records)), (ys, stacked)

    steps = (arrays, jnp.arange(length, dtype=jnp.int32))
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), steps)
    totals = run.initial(lambda: body((carry, {}), jax.tree.map(_zero, one))[0][1])
    (carry, totals), (ys, stacked) = jax.lax.scan(
        body, (carry, totals), steps, length=length, reverse=p["reverse"], unroll=p["unroll"]
    )
    run.records.update(totals)
    run.records.merge({key.without(loop): value for key, value in stacked.items()})
    return [*_with(fixed, carry), *ys]


def while_loop(run: Run, eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """A while loop."""
    p = eqn.params
    n, m = p["cond_nconsts"], p["body_nconsts"]
    condition, program = (jaxprs.closed(p[name]) for name in ("cond_jaxpr", "body_jaxpr"))
    consts = inputs[n : n + m]
    carry, fixed = _carried(program, inputs[n + m :], m)

    def body(state: Any) -> Any:
        carry, totals = state
        child = run.child(totals)
        outputs = child.run(program, [*consts, *_with(fixed, carry)])
        carried = [None if w else plain(y) for w, y in zip(fixed, outputs, strict=True)]
        return carried, dict(child.records)

    def goes_on(state: Any) -> Any:
        return run.child({}).run(condition, [*inputs[:n], *_with(fixed, state[0])])[0]

    totals = run.initial(lambda: body((carry, {}))[1])
    carry, totals = jax.lax.while_loop(goes_on, body, (carry, totals))
    run.records.update(totals)
    return _with(fixed, carry)


def branches(run: Run, eqn: JaxprEqn, inputs: Sequence[Any]) -> list[Any]:
    """A cond or switch: what a branch records counts where it is taken."""
    programs = [jaxprs.closed(program) for program in eqn.params["branches"]]
    here = run.new_loop()

    def of(at: int, totals: Any) -> Any:
        child, program = run.child(totals), programs[at]
        child.branch = (*run.branch, (here, at))
        outputs = [plain(y) for y in child.run(program, inputs[1:])]
        return outputs, dict(child.records)

    totals: dict[Key, Any] = {}
    for at in range(len(programs)):
        totals |= run.initial(lambda at=at: of(at, {})[1])
    taken = [functools.partial(of, at) for at in range(len(programs))]
    outputs, totals = jax.lax.switch(inputs[0], taken, totals)
    run.records.update(totals)
    return outputs


TABLE = {"cond": branches, "scan": scan, "while": while_loop}


def _carried(
    program: ClosedJaxpr, carry: Sequence[Any], before: int
) -> tuple[list[Any], list[Weight | None]]:
    """What a loop carries as arrays, and the weights among it that it hands on as they are."""
    fixed = [
        x if isinstance(x, Weight) and jaxprs.unchanged(program, before + i, i) else None
        for i, x in enumerate(carry)
    ]
    return [None if w else plain(x) for w, x in zip(fixed, carry, strict=True)], fixed


def _with(fixed: Sequence[Weight | None], carry: Sequence[Any]) -> list[Any]:
    return [x if w is None else w for w, x in zip(fixed, carry, strict=True)]


def _zero(shape: Any) -> Any:
    return jnp.zeros(shape.shape, shape.dtype)
