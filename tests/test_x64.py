"""`jax_enable_x64` changes nothing: the library names its dtypes.

What computes in float32 still does, and the bits are the same; float64 params and inputs are taken
as other float types are.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import flax_models as models
from tests.support import tables
from wush_jax import Config, formats
from wush_jax.ops.online import linear
from wush_jax.transforms import families

RNG = np.random.default_rng(3)
X = RNG.normal(size=(24, 64)).astype(np.float32)
W = RNG.normal(size=(64, 16)).astype(np.float32)
FORMATS = ("mxfp4", "mxfp4/ocp", "nvfp4", "nvfp4/nvidia", "int4", "int8")
CONFIGS = {
    **{f: Config(format=f, sample_tokens=16) for f in FORMATS},
    **{t: Config(transform=t, sample_tokens=16) for t in families.NAMES},
    "gptq": Config(solver="gptq", sample_tokens=16),
    "search": Config(solver="gptq", scale_search=True, format="nvfp4", sample_tokens=16),
    "coordinate": Config(solver="gptq", refine=2, objective="W", sample_tokens=16),
    "weights only": Config(act_format=None, sample_tokens=16),
    "auto": Config(transform="auto", sample_tokens=16),
}


def both(function) -> tuple[Any, Any]:
    """What a function returns without x64 and with it."""
    plain = function()
    with jax.enable_x64(True):
        return plain, function()


def assert_same(plain: Any, wide: Any) -> None:
    assert jax.tree.structure(plain) == jax.tree.structure(wide)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(wide), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("compile", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("fmt", FORMATS)
def test_formats(fmt, compile):
    fmt = formats.get_format(fmt)
    scale = None if fmt.global_scale is not None else 0.5
    x = np.concatenate([X, np.zeros_like(X[:1]), X[:1] * np.float32(1e30)])

    def run():
        quantize = jax.jit(formats.quantize, static_argnums=1) if compile else formats.quantize
        dequantize = jax.jit(formats.dequantize) if compile else formats.dequantize
        encoded = quantize(jnp.asarray(x), fmt, global_scale=scale)
        fake = formats.fake_quantize(jnp.asarray(x), fmt, global_scale=scale)
        return encoded, dequantize(encoded), fake

    assert_same(*both(run))


@pytest.mark.parametrize("name", CONFIGS)
def test_quantize(name):
    def run():
        params = {"dense": {"kernel": W}}
        q, report = wush_jax.quantize(
            params, [{"dense": X}], config=CONFIGS[name], return_report=True
        )
        y = linear(jnp.asarray(X), q["dense"]["kernel"])
        rows = [(row.error, row.predicted, row.error_hadamard) for row in report.layers]
        return q, y, rows, wush_jax.dequantize(q)

    assert_same(*both(run))


def test_a_model_compiled_and_judged():
    model, params, batches = tables.Tables(), tables.params(), tables.batches()
    config = Config(gauges=1, sample_tokens=32, rules=())

    def run():
        q = wush_jax.quantize(params, batches, model=model, config=config)
        shapes = wush_jax.abstract_quantize(params, batches, model=model, config=config)
        assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), q) == jax.tree.map(
            lambda leaf: (leaf.shape, leaf.dtype), shapes
        )
        found = wush_jax.evaluate(model, params, q, batches, bootstrap=10)
        errors = wush_jax.layer_errors(model, params, q, batches)
        y = jax.jit(model.run)({"params": q}, batches[0])
        return q, y, errors, [found["quantized"].kl, found["quantized"].kl_se]

    assert_same(*both(run))


def test_flax_models():
    model = models.Scanned(layers=2)
    tokens = np.arange(16, dtype=np.int32).reshape(2, 8)
    params = jax.tree.map(np.asarray, models.init(model, tokens)["params"])
    config = Config(gauges=1, sample_tokens=32)

    def run():
        q = wush_jax.quantize(params, [tokens], model=model, config=config)
        return q, jax.jit(lambda q, x: wush_jax.apply(model, q, x))(q, tokens)

    assert_same(*both(run))


def test_float64_params_and_inputs():
    """Quantized by the same float32 arithmetic; outputs are in the inputs' dtype."""
    with jax.enable_x64(True):
        q = wush_jax.quantize({"w": W.astype(np.float64)}, [{"w": X.astype(np.float64)}])["w"]
        narrow = wush_jax.quantize({"w": W}, [{"w": X}])["w"]
        y = linear(jnp.asarray(X, jnp.float64), q)
        assert y.dtype == jnp.float64
        assert (q.dtype, narrow.dtype) == ("float64", "float32")
        assert q.dequantize().dtype == jnp.float64
        for field in ("codes", "scales", "transform"):
            np.testing.assert_array_equal(getattr(q, field), getattr(narrow, field))
        np.testing.assert_array_equal(y, linear(jnp.asarray(X), narrow))
        errors = wush_jax.layer_errors(None, {"w": W}, {"w": q}, [{"w": X.astype(np.float64)}])
        assert 0 < errors["w"] < 0.1
