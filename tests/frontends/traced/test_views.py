"""A view says which of a parameter's numbers a value holds, after any chain of re-arrangements."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wush_jax.frontends.traced import views
from wush_jax.frontends.traced.views import Pick, Piece, View


def followed(function, shape):
    """The view of ``function``'s result, or None where it cannot be followed."""
    jaxpr = jax.make_jaxpr(function)(jnp.zeros(shape, jnp.float32)).jaxpr
    seen: dict[Any, View | None] = {jaxpr.invars[0]: View.whole("w", shape)}
    for eqn in jaxpr.eqns:
        view = seen[eqn.invars[0]]
        seen[eqn.outvars[0]] = None if view is None else views.step(eqn, view)
    return seen[jaxpr.outvars[0]]


def read(view, leaf):
    """The value that a view without picks and spans describes, from the parameter itself."""
    flat, offsets = leaf.reshape(-1), np.zeros((), int)
    strides = [math.prod(leaf.shape[i + 1 :]) for i in range(leaf.ndim)]
    for axis in view.axes:
        own = np.zeros((), int)
        for piece in axis:
            steps = np.arange(piece.size) * piece.stride * strides[piece.axis]
            own = (own[..., None] + steps).reshape(-1)
        offsets = offsets[..., None] + own.reshape(-1)
    return flat[offsets]


@st.composite
def chains(draw):
    """A shape, and transposes and reshapes of it in turn."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=2, max_size=4)))
    steps, now = [], list(shape)
    for _ in range(draw(st.integers(1, 4))):
        if draw(st.booleans()):
            order = tuple(draw(st.permutations(range(len(now)))))
            steps.append(("transpose", order))
            now = [now[i] for i in order]
        else:
            at = draw(st.integers(0, len(now) - 1))
            if len(now) > 1 and draw(st.booleans()):
                at = min(at, len(now) - 2)
                now = [*now[:at], now[at] * now[at + 1], *now[at + 2 :]]
            else:
                part = draw(st.sampled_from([d for d in range(1, now[at] + 1) if now[at] % d == 0]))
                now = [*now[:at], part, now[at] // part, *now[at + 1 :]]
            steps.append(("reshape", tuple(now)))
    return shape, steps


@settings(max_examples=60, deadline=None)
@given(chains())
def test_a_followed_value_is_the_parameters_numbers(case):
    shape, steps = case

    def chain(w):
        for name, argument in steps:
            w = jnp.transpose(w, argument) if name == "transpose" else jnp.reshape(w, argument)
        return w

    view = followed(chain, shape)
    leaf = np.arange(math.prod(shape), dtype=np.float32).reshape(shape)
    if view is not None:  # a merge of axes that are no neighbours can be split another way
        np.testing.assert_array_equal(read(view, leaf), np.asarray(chain(jnp.asarray(leaf))))


def test_casts_and_unit_axes_change_nothing():
    view = followed(lambda w: w.astype(jnp.bfloat16)[None, :, None], (4, 6))
    assert view == View("w", (4, 6), ((), (Piece(0, 4, 1),), (), (Piece(1, 6, 1),)))


def test_an_axis_split_and_merged_again_is_one():
    view = followed(lambda w: w.reshape(4, 2, 3).reshape(4, 6), (4, 6))
    assert view is not None
    assert [math.prod(p.size for p in axis) for axis in view.axes] == [4, 6]


def test_constant_index_and_range():
    one = followed(lambda w: w[1], (3, 4))
    part = followed(lambda w: w[:, 2:5], (4, 6))
    assert one is not None
    assert one.picks == (Pick(0, "static", 1),)
    assert part is not None
    assert part.spans == ((1, 2, 5),)
    assert part.axes[1] == (Piece(1, 3, 1),)


@pytest.mark.parametrize(
    "function",
    [
        lambda w: w * 2.0,
        lambda w: jnp.broadcast_to(w, (2, 4, 6)),
        lambda w: w[::2],
        lambda w: w.T.reshape(8, 3),
        lambda w: w.sum(axis=0),
    ],
    ids=["mul", "repeat", "strided", "crosswise", "sum"],
)
def test_other_numbers_are_not_followed(function):
    assert followed(function, (4, 6)) is None
