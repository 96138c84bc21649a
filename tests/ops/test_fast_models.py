"""Flax models by the fast implementations: stacked, rematerialised and batched kernels."""

import jax
import numpy as np
import pytest

import wush_jax
from tests.support import flax_models as models
from tests.support.gpu import HOPPER, on

CONFIG = wush_jax.Config(transform="hadamard", gauges=1, sample_tokens=32)
KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (4, 16), 0, 50)
PER_MEMBER = jax.random.normal(KEY, (3, 16, 32))
CASES = {
    "scan_axis_1": (models.Scanned(axis=1), TOKENS),
    "scan_remat": (models.Scanned(remat=True), TOKENS),
    "experts": (models.Experts(), PER_MEMBER),
    "vmap": (models.Ensemble(in_axes=0), PER_MEMBER),
}


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_reference(name):
    model, x = CASES[name]
    variables = models.init(model, x)
    qparams = wush_jax.quantize(variables, [x], model=model, config=CONFIG)

    def run(qparams, implementation):
        return wush_jax.apply(model, qparams, x, implementation=implementation)

    expected = jax.jit(run, static_argnums=1)(qparams, "xla")
    with on(HOPPER):
        chosen = {row.implementation for row in wush_jax.explain(qparams).layers}
        prepared = wush_jax.prepare(qparams, keep_fp8=True)
        y = jax.jit(lambda q: run(q, None))(prepared)
    assert chosen == {"fp8"}
    error = np.linalg.norm(np.asarray(y - expected)) / np.linalg.norm(np.asarray(expected))
    assert error <= 5e-3  # float32 sums in another order may turn a code of the next layer
