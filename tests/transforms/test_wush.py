"""WUSH's closed form: what it balances, how strength shares the spectrum, and its fixed signs."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.random_moments import (
    SIZES,
    assert_blocks_close,
    congruence,
    drawn,
    every_family,
    float64,
    root,
    seeds,
    singular_values,
    sizes,
    some,
)
from wush_jax.transforms import hadamard


@some(max_examples=16)
@given(block=sizes, seed=seeds)
def test_wush_balances(block, seed):
    """T Sx Tᵀ = T⁻ᵀ Sw T⁻¹ = H S Hᵀ, whose diagonal is flat; TᵀT = Sw # Sx⁻¹."""
    sx, sw, dx, dw = drawn(seed, block)
    t, inverse_transpose = float64(every_family(sx, sw)["wush"])
    s = singular_values(dx, dw)
    h = hadamard.signs(block) / np.sqrt(block)
    mixed = (h * s[:, None, :]) @ h
    activations, weights = congruence(t, dx), congruence(inverse_transpose, dw)
    assert_blocks_close(activations, mixed)
    assert_blocks_close(weights, mixed)
    flat = np.broadcast_to(s.mean(-1, keepdims=True), s.shape)
    for moment in (activations, weights):
        np.testing.assert_allclose(np.diagonal(moment, axis1=1, axis2=2), flat, rtol=1e-4)
    half = root(dx)
    inverse = np.linalg.inv(half)
    assert_blocks_close(t.swapaxes(1, 2) @ t, inverse @ root(half @ dw @ half) @ inverse)


@some(max_examples=12)
@given(block=sizes, seed=seeds, strength=st.sampled_from([0.0, 0.25, 0.5]))
def test_strength_shares_the_spectrum(block, seed, strength):
    """T Sx Tᵀ = H S^(2-strength) H and T⁻ᵀ Sw T⁻¹ = H S^strength H; at 0, TᵀT = Sw."""
    sx, sw, dx, dw = drawn(seed, block, condition=100)
    t, inverse_transpose = float64(every_family(sx, sw, strength)["wush"])
    s, h = singular_values(dx, dw), hadamard.signs(block) / np.sqrt(block)
    assert_blocks_close(congruence(t, dx), (h * s[:, None, :] ** (2 - strength)) @ h)
    assert_blocks_close(congruence(inverse_transpose, dw), (h * s[:, None, :] ** strength) @ h)
    if strength == 0:
        assert_blocks_close(t.swapaxes(1, 2) @ t, dw)


@pytest.mark.parametrize("block", SIZES)
@pytest.mark.parametrize("which", ["activations", "weights", "both"])
def test_a_zero_block_is_not_transformed(which, block):
    sx, sw, *_ = drawn(3, block)
    expected = every_family(sx, sw)
    sx[0] *= which == "weights"
    sw[0] *= which == "activations"
    pairs = every_family(sx, sw)
    for name, fallback in (("wush", hadamard.matrix(block)), ("wus", np.eye(block))):
        np.testing.assert_array_equal(pairs[name].forward[0], fallback)
        np.testing.assert_array_equal(pairs[name].inverse_transpose[0], fallback)
        np.testing.assert_array_equal(pairs[name].forward[1], expected[name].forward[1])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(pairs))


@pytest.mark.parametrize("block", SIZES)
def test_signs_and_order_are_fixed(block):
    """Same bits for the same input; S falls, and each column of U is positive at its largest."""
    sx, sw, dx, dw = drawn(4, block)
    first, again = every_family(sx, sw), every_family(sx.copy(), sw.copy())
    jax.tree.map(np.testing.assert_array_equal, first, again)
    unmixed, _ = float64(first["wus"])
    spectrum = np.diagonal(congruence(unmixed, dx), axis1=1, axis2=2)
    assert (np.diff(spectrum) <= 1e-5 * spectrum[:, :1]).all()
    ut = (
        np.sqrt(spectrum)[..., None]
        * unmixed
        @ np.linalg.inv(np.linalg.cholesky(dw)).swapaxes(1, 2)
    )
    largest = np.take_along_axis(ut, np.abs(ut).argmax(-1)[..., None], -1)
    assert (largest > 0).all()
