"""Functions of any pytree, quantized by reading their programs."""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import flax_models as models
from wush_jax.layers.quantized_kernel import is_quantized

CONFIG = wush_jax.Config(format="int8", gauges=1, sample_tokens=32)
RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)


def own_einsums(p, x):
    """Weights as people hold them: heads, gates in one array, a transposed head, an embedding."""
    q = jnp.einsum("btk,nkh->btnh", x, p["q"])
    x = x + jnp.einsum("btnh,nhd->btd", jnp.tanh(q), p["o"])
    gate, up = jnp.dot(x, p["gating"][0]), jnp.dot(x, p["gating"][1])
    x = jax.checkpoint(lambda h, w: h @ w.T)(jax.nn.silu(gate) * up, p["down"])
    return x + p["table"][jnp.arange(x.shape[1])][None] + p["bias"][None, None]


@pytest.fixture(scope="module")
def own():
    params = {
        "q": normal(4, 64, 16),
        "o": normal(4, 16, 64),
        "gating": normal(2, 64, 96),
        "down": normal(64, 96),
        "table": normal(8, 64),
        "bias": jnp.zeros(64),
    }
    batches = [(normal(4, 8, 64),) for _ in range(3)]
    out = wush_jax.quantize(params, batches, model=own_einsums, config=CONFIG, return_report=True)
    return params, batches, *out


def relative(y, exact):
    return float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact))


def test_every_product_is_found_and_the_rest_is_told(own):
    _, _, q, report = own
    assert {layer.path for layer in report.layers} == {"q", "o", "gating", "down"}
    assert report.skipped == {"table": "read by gather"}
    assert {name: q[name].roles for name in ("q", "o", "gating", "down")} == {
        "q": "nkn",
        "o": "kkn",
        "gating": "nkn",
        "down": "nk",
    }
    assert not is_quantized(q["table"])


def test_runs_like_the_float_function(own):
    params, batches, q, _ = own
    run = wush_jax.quantized(own_einsums)
    y = jax.jit(run)(q, *batches[0])
    assert relative(y, own_einsums(params, *batches[0])) < 0.02
    np.testing.assert_array_equal(run(q, *batches[0]), y)


def test_is_each_layers_own_product(own):
    params, batches, q, _ = own
    (x,) = batches[0]
    exact = own_einsums({**params, "q": q["q"].dequantize()}, x)
    weight_only = dataclasses.replace(q["q"], act_format=None, act_global_scale=None)
    y = wush_jax.quantized(own_einsums)({**params, "q": weight_only}, x)
    np.testing.assert_allclose(y, exact, atol=2e-2 * float(jnp.abs(exact).max()))


def test_errors_and_shapes_take_functions(own):
    params, batches, q, _ = own
    errors = wush_jax.layer_errors(own_einsums, params, q, batches)
    assert set(errors) == {"q", "o", "gating", "down"}
    assert max(errors.values()) < 1e-3
    shapes = wush_jax.abstract_quantize(params, batches, model=own_einsums, config=CONFIG)
    assert jax.tree.structure(shapes) == jax.tree.structure(q)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, q)


def test_traced_once_for_equal_shapes(own):
    _, batches, q, _ = own
    traces = 0

    def counted(p, x):
        nonlocal traces
        traces += 1
        return own_einsums(p, x)

    run = wush_jax.quantized(counted)
    for (x,) in batches:
        run(q, x)
    jax.jit(lambda p, x: run(p, x))(q, batches[0][0])
    assert traces == 1


def test_vmap_and_gradient_of_what_is_float(own):
    _, batches, q, _ = own
    run = wush_jax.quantized(own_einsums)
    (x,) = batches[0]
    each = jax.vmap(lambda row: run(q, row[None])[0])(x)
    np.testing.assert_allclose(each, run(q, x), atol=1e-4)
    bias = jax.grad(lambda b: run({**q, "bias": b}, x).sum())(jnp.zeros(64))
    np.testing.assert_allclose(bias, np.full(64, 32.0))


def test_a_quantized_weight_read_otherwise_is_an_error(own):
    _, batches, q, _ = own

    def decayed(p, x):
        return own_einsums(p, x) + (p["q"] ** 2).sum()

    with pytest.raises(ValueError, match=r"q: this weight is quantized for products.*Rule"):
        wush_jax.quantized(decayed)(q, *batches[0])
    with pytest.raises(ValueError, match=r"q: this quantized weight leaves the part"):
        wush_jax.quantized(lambda p, x: p["q"])(q, *batches[0])


def test_flags_strings_and_functions_are_constants(own):
    params, batches, q, _ = own

    def flagged(p, x, *, train, activation, name=None):
        assert train is False
        assert name in (None, "a")
        return activation(own_einsums(p, x)), name

    keywords = {"x": batches[0][0], "train": False, "activation": jnp.tanh, "name": "a"}
    again = wush_jax.quantize(params, [keywords], model=flagged, config=CONFIG)
    assert {n for n, leaf in again.items() if is_quantized(leaf)} == {"q", "o", "gating", "down"}
    y, name = wush_jax.quantized(flagged)(q, **keywords)
    assert name == "a"
    assert y.shape == (4, 8, 64)


def test_params_of_any_pytree():
    def model(layers, x):
        for w, bias in layers:
            x = jnp.tanh(x @ w + bias[None])
        return x

    params = [(normal(64, 64), jnp.zeros(64)) for _ in range(2)]
    batches = [normal(32, 64)]
    q, report = wush_jax.quantize(params, batches, model=model, config=CONFIG, return_report=True)
    assert [layer.path for layer in report.layers] == ["0/0", "1/0"]
    assert isinstance(q, list)
    assert q[0][1] is params[0][1]
    assert set(wush_jax.layer_errors(model, params, q, batches)) == {"0/0", "1/0"}
    assert "1/0" in str(wush_jax.explain(q))
    assert relative(wush_jax.quantized(model)(q, *batches), model(params, *batches)) < 0.02


def test_lookup_by_one_hot_is_no_layer():
    params = {"table": normal(16, 64), "w": normal(64, 64)}

    def model(p, ids):
        return jax.nn.one_hot(ids, 16, dtype=jnp.float32) @ p["table"] @ p["w"]

    ids = jnp.arange(16)
    _, report = wush_jax.quantize(params, [(ids,)], model=model, config=CONFIG, return_report=True)
    assert [layer.path for layer in report.layers] == ["w"]
    assert report.skipped == {"table": "read by product with an input of bool"}


def test_same_bits_as_by_the_interceptor():
    model = models.Mlp()
    x = jax.random.normal(jax.random.key(1), (4, 16, 32))
    params = models.init(model, x)["params"]
    config = dataclasses.replace(CONFIG, format="mxfp4")

    def function(p, x):
        return model.apply({"params": p}, x)

    intercepted = wush_jax.quantize(params, [x], model=model, config=config)
    traced = wush_jax.quantize(params, [x], model=function, config=config)
    for a, b in zip(jax.tree.leaves(intercepted), jax.tree.leaves(traced), strict=True):
        np.testing.assert_array_equal(a, b)
    y = jax.jit(lambda p, x: wush_jax.apply(model, p, x))(intercepted, x)
    np.testing.assert_array_equal(wush_jax.quantized(function)(traced, x), y)


def test_modules_that_intercept_nothing():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            w = self.param("w", nn.initializers.lecun_normal(), (64, 4, 16))
            return jnp.einsum("bk,knh->bnh", x, w)

    model, x = Own(), normal(32, 64)
    params = model.init(jax.random.key(0), x)
    q = wush_jax.quantize(params, [(x,)], model=model.apply, config=CONFIG)
    y = wush_jax.quantized(model.apply)(q, x)
    assert relative(y, model.apply(params, x)) < 0.02
