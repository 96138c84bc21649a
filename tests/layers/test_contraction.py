"""Any linear layer as rows @ matrix: against einsum and Flax's own layers."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from wush_jax.layers.contraction import Contraction, kernel_to_matrix, matrix_to_kernel


def through_rows(contraction, x, kernel):
    """What a quantized layer does, without the quantizer, in NumPy."""
    rows, matrix = contraction.rows(x), kernel_to_matrix(kernel, contraction.roles)
    batch = contraction.roles.count("b")
    assert rows.shape[-1] == matrix.shape[-2]
    assert rows.shape[:batch] == matrix.shape[:batch]
    flat = rows.reshape(*rows.shape[:batch], -1, rows.shape[-1])
    y = (flat @ matrix).reshape(*rows.shape[:-1], matrix.shape[-1])
    return contraction.output(y, kernel.shape)


def integers(rng, shape) -> Any:
    """Small integers: every order of summation gives the same float64."""
    return rng.integers(-4, 5, shape).astype(np.float64)


@st.composite
def einsums(draw):
    """(x labels, kernel labels, output labels, sizes) of any plain contraction."""
    labels = iter(draw(st.permutations("abcdefgh")))
    count = {role: draw(st.integers(role == "k", 2)) for role in "bkfn"}
    assume(sum(count[role] for role in "bfn") > 0)  # else the output is a scalar
    named = {role: [next(labels) for _ in range(n)] for role, n in count.items()}
    b, k, f, n = (named[role] for role in "bkfn")
    x, kernel, out = (draw(st.permutations(part)) for part in (b + k + f, b + k + n, b + f + n))
    sizes = {label: draw(st.integers(1, 4)) for label in "abcdefgh"}
    return "".join(x), "".join(kernel), "".join(out), sizes


@settings(max_examples=150, deadline=None)
@given(spec=einsums(), seed=st.integers(0, 99))
def test_any_einsum(spec, seed):
    x_labels, kernel_labels, out_labels, sizes = spec
    rng = np.random.default_rng(seed)
    x, kernel = (integers(rng, [sizes[c] for c in s]) for s in (x_labels, kernel_labels))
    contraction = Contraction(x_labels, kernel_labels, out_labels)
    expected = np.einsum(str(contraction), x, kernel)
    np.testing.assert_array_equal(through_rows(contraction, x, kernel), expected)
    axes = contraction.contracted_axes
    assert [x_labels[axis] for axis in axes] == [
        c for c in kernel_labels if c in x_labels and c not in out_labels
    ]
    bias_labels = [c for c in out_labels if c in kernel_labels]
    bias = integers(rng, [sizes[c] for c in bias_labels])
    shape = [sizes[c] if c in kernel_labels else 1 for c in out_labels]
    np.testing.assert_array_equal(contraction.broadcast_bias(bias), bias.reshape(shape))


@settings(max_examples=100, deadline=None)
@given(
    roles=st.text("bkn", min_size=1, max_size=5).filter(lambda s: "k" in s),
    seed=st.integers(0, 99),
)
def test_matrix_round_trip(roles, seed):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 5, len(roles)).tolist())
    kernel = integers(rng, shape)
    matrix = kernel_to_matrix(kernel, roles)
    sizes = {r: [n for n, role in zip(shape, roles, strict=True) if role == r] for r in "bkn"}
    assert matrix.shape == (*sizes["b"], math.prod(sizes["k"]), math.prod(sizes["n"]))
    np.testing.assert_array_equal(matrix_to_kernel(matrix, roles, shape), kernel)


@st.composite
def dense_generals(draw):
    """(shape of x, axis, batch_dims, features) as Flax's DenseGeneral takes them."""
    ndim = draw(st.integers(1, 4))
    batch = draw(st.integers(0, min(ndim - 1, 2)))
    rest = draw(st.permutations(range(batch, ndim)))
    axis = tuple(sorted(rest[: draw(st.integers(1, len(rest)))]))  # Flax sorts them
    shape = tuple(draw(st.integers(1, 4)) for _ in range(ndim))
    features = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=2)))
    return shape, axis, tuple(range(batch)), features


@settings(max_examples=15, deadline=None)
@given(spec=dense_generals(), seed=st.integers(0, 99))
def test_flax_dense_general(spec, seed):
    shape, axis, batch, features = spec
    rng = np.random.default_rng(seed)
    x = integers(rng, shape)
    kernel = integers(rng, (*(shape[i] for i in (*batch, *axis)), *features))
    module = nn.DenseGeneral(features, axis=axis, batch_dims=batch, use_bias=False)
    expected: Any = module.apply({"params": {"kernel": jnp.float32(kernel)}}, jnp.float32(x))
    contraction = Contraction.dense_general(x.ndim, axis, batch, len(features))
    assert contraction.roles == "b" * len(batch) + "k" * len(axis) + "n" * len(features)
    np.testing.assert_array_equal(through_rows(contraction, x, kernel), expected)


@pytest.mark.parametrize("ndim", [1, 2, 4])
def test_dense(ndim):
    rng = np.random.default_rng(ndim)
    x, kernel = integers(rng, (3,) * (ndim - 1) + (8,)), integers(rng, (8, 5))
    contraction = Contraction.dense(ndim)
    assert contraction.roles == "kn"
    np.testing.assert_array_equal(through_rows(contraction, x, kernel), x @ kernel)


@pytest.mark.parametrize(
    ("x", "kernel", "out", "message"),
    [
        ("aab", "bc", "ac", "plain contraction"),  # a diagonal of x
        ("ab", "bcc", "ac", "plain contraction"),
        ("ab", "bc", "acc", "plain contraction"),
        ("abz", "bc", "ac", "plain contraction"),  # z summed over x alone
        ("ab", "bcz", "ac", "plain contraction"),
        ("ab", "bc", "acz", "plain contraction"),  # z from nowhere
        ("ab", "c", "abc", "contracts nothing"),
        ("ab", "ab", "ab", "contracts nothing"),  # an elementwise product
    ],
)
def test_other_einsums_are_refused(x, kernel, out, message):
    with pytest.raises(ValueError, match=message):
        Contraction(x, kernel, out)
