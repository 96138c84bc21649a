"""Random moments, every family's T for them, and the float64 NumPy that checks its identities."""

import functools

import jax
import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from wush_jax.transforms import families

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
