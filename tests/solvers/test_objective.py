"""The objective that solvers minimise, against sums over the tokens."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.formats_reference import fake_quantize
from wush_jax.solvers import objective
from wush_jax.statistics import moments


def test_objective_is_the_mean_squared_output_error():
    """Ĥ and A* against sums over the tokens: rounding errors that follow a massive activation."""
    rng = np.random.default_rng(5)
    tokens, features = 4096, 64
    r = rng.normal(size=(tokens, features)).astype(np.float32)
    r += 10 * rng.normal(size=features)  # the same in every token
    r: Any = r.astype(np.float32)
    rounded = np.asarray(fake_quantize(r, "mxfp4"))
    a = rng.normal(size=(features, 16)).astype(np.float32)

    @jax.jit
    def build(r, rounded, a):
        noise = objective.noise(r, rounded, jnp.uint32(tokens), features)
        moment = moments.second_moment(moments.of(r))
        return objective.objective(a, moment, noise, 1e-6, 1.0)

    built = build(r, rounded, a)
    exact = rounded.T.astype(np.float64) @ rounded / tokens
    assert np.linalg.norm(built.hessian[0] - exact) < 0.01 * np.linalg.norm(exact)

    def error(q):
        return ((rounded @ np.asarray(q, np.float64) - r @ a) ** 2).sum()

    assert error(built.target) < 0.9 * error(a)  # makes up for the systematic part
    best = np.linalg.lstsq(rounded.astype(np.float64), (r @ a).astype(np.float64), rcond=None)[0]
    assert error(built.target) < 1.15 * error(best)
