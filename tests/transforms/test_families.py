"""The identities of the closed forms, for every family and block size, against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wush_jax.transforms import families, hadamard, loss

SIZES = (16, 32, 64, 128)
BLOCKS = 2
sizes = st.sampled_from(SIZES)
seeds = st.integers(0, 2**31)
some = functools.partial(settings, deadline=None)


@jax.jit
def _families(sx, sw, strength, damping):
    options = {"strength": strength, "damping": damping, "key": jax.random.key(0)}
    return {name: families.make(name, sx, sw, **options) for name in families.NAMES}


def every_family(sx, sw, strength=1.0, damping=1e-2):
    """Every family at once: one compilation for each D."""
    return _families(sx, sw, strength, damping)


predicted = jax.jit(loss.predicted_loss)


def positive_definite(rng, block, condition):
    """[BLOCKS, D, D], eigenvalues from 1 down to 1 / condition, of any overall scale."""
    q, _ = np.linalg.qr(rng.normal(size=(BLOCKS, block, block)))
    values = condition ** -np.linspace(0, 1, block) * 10 ** rng.uniform(-3, 3)
    return (q * values @ q.swapaxes(1, 2)).astype(np.float32)


def damped(moment, damping=1e-2):
    moment = np.asarray(moment, np.float64)
    mean = np.trace(moment, axis1=1, axis2=2)[:, None, None] / moment.shape[-1]
    return (moment + moment.swapaxes(1, 2)) / 2 + damping * mean * np.eye(moment.shape[-1])


def drawn(seed, block, condition=1e4):
    """Moments as `families` takes them, and damped in float64 as the identities want them."""
    rng = np.random.default_rng(seed)
    sx, sw = (positive_definite(rng, block, condition) for _ in "xw")
    return sx, sw, damped(sx), damped(sw)


def float64(t):
    return np.asarray(t.forward, np.float64), np.asarray(t.inverse_transpose, np.float64)


def root(s):
    values, vectors = np.linalg.eigh(s)
    return (vectors * np.sqrt(values)[:, None, :]) @ vectors.swapaxes(1, 2)


def singular_values(sx, sw):
    """S, descending: the square roots of the eigenvalues of Sx^½ Sw Sx^½."""
    half = root(sx)
    return np.sqrt(np.linalg.eigvalsh(half @ sw @ half))[:, ::-1]


def congruence(a, s):
    return a @ s @ a.swapaxes(1, 2)


def assert_blocks_close(actual, expected, relative=2e-5):
    """Frobenius, block by block."""
    error = np.linalg.norm(actual - expected, axis=(1, 2)) / np.linalg.norm(expected, axis=(1, 2))
    assert error.max() <= relative, error


@pytest.mark.parametrize("block", [1, 2, *SIZES, 256])
def test_hadamard_is_sylvesters(block):
    expected = np.ones((1, 1))
    while len(expected) < block:
        expected = np.kron([[1, 1], [1, -1]], expected)
    signs = hadamard.signs(block)
    np.testing.assert_array_equal(signs, expected)
    np.testing.assert_array_equal(signs, signs.T)
    assert signs.dtype == np.int8
    h = hadamard.matrix(block)
    assert h.dtype == np.float32
    np.testing.assert_allclose(h @ h, np.eye(block), atol=1e-6)


@pytest.mark.parametrize("block", [0, 3, 12, 20, 96])
def test_hadamard_refuses_other_orders(block):
    with pytest.raises(ValueError, match=f"D={block} is not a power of two"):
        hadamard.signs(block)


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
