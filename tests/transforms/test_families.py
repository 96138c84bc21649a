"""Every family and block size: T and T⁻ᵀ are a pair, and the losses are those predicted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.random_moments import (
    BLOCKS,
    SIZES,
    assert_blocks_close,
    congruence,
    damped,
    drawn,
    every_family,
    float64,
    positive_definite,
    root,
    seeds,
    singular_values,
    sizes,
    some,
)
from wush_jax.transforms import families, hadamard, loss

predicted = jax.jit(loss.predicted_loss)


@some(max_examples=16)
@given(block=sizes, seed=seeds, strength=st.sampled_from([0.0, 0.5, 1.0]))
def test_every_family_pairs(block, seed, strength):
    """(x Tᵀ)(T⁻ᵀ W) = x W: T and T⁻ᵀ are what they say."""
    sx, sw, *_ = drawn(seed, block)
    for name, pair in every_family(sx, sw, strength).items():
        t, inverse_transpose = float64(pair)
        np.testing.assert_allclose(
            t.swapaxes(1, 2) @ inverse_transpose,
            np.broadcast_to(np.eye(block), t.shape),
            atol=2e-4,
            err_msg=name,
        )


@pytest.mark.parametrize("damping", [0.0, 1e-2])
@pytest.mark.parametrize("block", SIZES)
def test_float32_pairs_at_condition_1e8(block, damping):
    """x and W with moments of condition 1e8 each, in float32 from end to end: no x64 anywhere."""
    assert not jax.config.read("jax_enable_x64")
    rng = np.random.default_rng(block)
    sx, sw = (positive_definite(rng, block, 1e8) for _ in "xw")
    x = (rng.normal(size=(BLOCKS, 64, block)) @ root(damped(sx, 1e-9))).astype(np.float32)
    w = (root(damped(sw, 1e-9)) @ rng.normal(size=(BLOCKS, block, 48))).astype(np.float32)
    exact = x.astype(np.float64) @ w.astype(np.float64)
    for name, t in every_family(sx, sw, 1.0, damping).items():
        matmul = functools.partial(jnp.matmul, precision="highest")
        y = matmul(matmul(x, t.forward.mT), matmul(t.inverse_transpose, w))
        assert y.dtype == jnp.float32, name
        assert_blocks_close(np.asarray(y, np.float64), exact, 1e-5)


@some(max_examples=16)
@given(block=sizes, seed=seeds)
def test_predicted_losses(block, seed):
    sx, sw, dx, dw = drawn(seed, block)
    pairs = every_family(sx, sw)
    losses = {
        name: np.asarray(predicted(t, jnp.asarray(dx), jnp.asarray(dw)))
        for name, t in pairs.items()
    }
    for name, t in pairs.items():  # against the definition
        x, w = (congruence(a, s) for a, s in zip(float64(t), (dx, dw), strict=True))
        defined = (np.diagonal(x, axis1=1, axis2=2) * np.diagonal(w, axis1=1, axis2=2)).sum(-1)
        np.testing.assert_allclose(losses[name], defined, rtol=1e-5, err_msg=name)
    s = singular_values(dx, dw)
    least = s.sum(-1) ** 2 / block
    np.testing.assert_allclose(losses["wush"], least, rtol=1e-4)
    np.testing.assert_allclose(losses["wus"], (s**2).sum(-1), rtol=1e-4)
    for name, other in losses.items():
        assert (other >= least * (1 - 1e-4)).all(), name
    wild = np.random.default_rng(seed).normal(size=dx.shape)  # any T at all
    x, w = congruence(wild, dx), congruence(np.linalg.inv(wild).swapaxes(1, 2), dw)
    wild_loss = (np.diagonal(x, axis1=1, axis2=2) * np.diagonal(w, axis1=1, axis2=2)).sum(-1)
    assert (wild_loss >= least).all()


@some(max_examples=8)
@given(block=sizes, seed=seeds)
def test_diagonal_hadamard_is_best_for_diagonal_moments(block, seed):
    """J = (Σ sqrt(Sx_ii Sw_ii))² / D there, as WUSH's."""
    eye = np.eye(block, dtype=np.float32)
    sx, sw = (np.abs(moment) * eye for moment in drawn(seed, block)[:2])
    dx, dw = damped(sx), damped(sw)
    pairs = every_family(sx, sw)
    expected = np.sqrt(np.diagonal(dx * dw, axis1=1, axis2=2)).sum(-1) ** 2 / block
    for name in ("diagonal_hadamard", "wush"):
        found = predicted(pairs[name], jnp.asarray(dx), jnp.asarray(dw))
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)


@some(max_examples=8)
@given(block=sizes, seed=seeds)
def test_diagonal_gives_both_sides_the_same_diagonal(block, seed):
    sx, sw, dx, dw = drawn(seed, block)
    t, inverse_transpose = float64(every_family(sx, sw)["diagonal"])
    np.testing.assert_allclose(
        np.diagonal(congruence(t, dx), axis1=1, axis2=2),
        np.diagonal(congruence(inverse_transpose, dw), axis1=1, axis2=2),
        rtol=1e-5,
    )


def test_vmap_agrees_with_leading_axes():
    sx, sw, *_ = drawn(5, 16)
    sx, sw = (jnp.stack([moment, moment[::-1]]) for moment in (sx, sw))
    mapped = jax.jit(jax.vmap(functools.partial(families.make, "wush")))(sx, sw)
    plain = every_family(sx[0], sw[0])["wush"]
    for i, order in enumerate((slice(None), slice(None, None, -1))):
        expected = np.asarray(plain.forward[order])
        assert_blocks_close(np.asarray(mapped.forward[i]), expected, 1e-4)


def test_random_is_orthogonal_and_follows_its_key():
    sx = jnp.zeros((3, 16, 16))
    draw = functools.partial(families.make, "random", sx, sx)
    t, again, other = (draw(key=jax.random.key(seed)).forward for seed in (1, 1, 2))
    np.testing.assert_array_equal(t, again)
    assert np.abs(t - other).max() > 0.1
    assert np.abs(t[0] - t[1]).max() > 0.1  # one draw a block
    np.testing.assert_allclose(t @ t.mT, np.broadcast_to(np.eye(16), t.shape), atol=1e-5)


def test_condition_number():
    t = np.stack([np.diag(np.linspace(1, 5, 16)), hadamard.matrix(16)]).astype(np.float32)
    np.testing.assert_allclose(loss.condition_number(jnp.asarray(t)), [5, 1], rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "block", "message"),
    [
        ("fourier", 16, "unknown transform 'fourier'; there are identity, random"),
        ("random", 16, r"give key="),
        ("wush", 24, "D=24 is not a power of two"),
        ("identity", 48, "D=48 is not a power of two"),
    ],
)
def test_wrong_requests_are_refused(name, block, message):
    with pytest.raises(ValueError, match=message):
        families.make(name, jnp.zeros((1, block, block)), jnp.zeros((1, block, block)))
