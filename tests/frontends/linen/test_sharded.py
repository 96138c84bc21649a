"""A model whose kernels lie on a mesh is calibrated, quantized and run there."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import wush_jax
from tests.support import flax_models as models

CONFIG = wush_jax.Config(format="int8", transform="hadamard", sample_tokens=32)
KEY = jax.random.key(3)
X = jax.random.normal(KEY, (8, 16, 32))
MODEL = models.Mlp()
SPECS = {"up": P(None, "model"), "down": P("model", None)}


@pytest.fixture(scope="module")
def mesh():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices; tests/conftest.py makes them on CPU")
    return Mesh(np.array(jax.devices()[:8]).reshape(4, 2), ("data", "model"))


def _sharded(params: Any, mesh: Mesh) -> Any:
    return {
        name: {
            leaf: jax.device_put(x, NamedSharding(mesh, SPECS[name] if leaf == "kernel" else P()))
            for leaf, x in layer.items()
        }
        for name, layer in params.items()
    }


def test_sharded_equals_unsharded(mesh):
    params = models.init(MODEL, X)["params"]
    alone = wush_jax.quantize(params, [X], model=MODEL, config=CONFIG)
    batch = jax.device_put(X, NamedSharding(mesh, P("data")))
    sharded = _sharded(params, mesh)
    q = wush_jax.quantize(sharded, [batch], model=MODEL, config=CONFIG)
    for name, (rows, columns) in {"up": ("model", None), "down": (None, "model")}.items():
        kernel = q[name]["kernel"]
        assert kernel.codes.sharding.spec == P(rows, columns)
        np.testing.assert_array_equal(kernel.codes, alone[name]["kernel"].codes)
    answer = jax.jit(lambda q, x: wush_jax.apply(MODEL, q, x))(q, batch)
    np.testing.assert_allclose(
        answer, wush_jax.apply(MODEL, alone, X), rtol=1e-4, atol=float(jnp.abs(answer).max()) * 1e-2
    )  # a sum in another order may flip the rounding of an activation

    abstract = wush_jax.abstract_quantize(sharded, [batch], model=MODEL, config=CONFIG)
    for name in SPECS:
        assert abstract[name]["kernel"].codes.sharding == q[name]["kernel"].codes.sharding
