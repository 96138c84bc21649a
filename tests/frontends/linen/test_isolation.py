"""A quantized model leaves every other one alone, compiles once, and carries no float kernel."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import flax_models as models
from wush_jax.layers.quantized_kernel import is_quantized

CONFIG = wush_jax.Config(gauges=1, sample_tokens=32)
KEY = jax.random.key(1)
X = jax.random.normal(KEY, (4, 16, 32))


@pytest.fixture(scope="module")
def setting():
    model = models.Mlp()
    params = models.init(model, X)["params"]
    return model, params, wush_jax.quantize(params, [X], model=model, config=CONFIG)


@pytest.mark.parametrize("model", [models.Mlp(), models.Jitted()], ids=["plain", "nn.jit"])
def test_plain_model_is_untouched_before_during_and_after(model):
    params = models.init(model, X)["params"]
    traces = 0

    def plain(p, x):
        nonlocal traces
        traces += 1
        return model.apply({"params": p}, x)

    plain = jax.jit(plain)
    before = plain(params, X)
    q = wush_jax.quantize(params, [X], model=model, config=CONFIG)
    after_capture = plain(params, X)
    quantized = wush_jax.apply(model, q, X)
    beside = jax.jit(lambda p, q, x: (model.apply({"params": p}, x), wush_jax.apply(model, q, x)))
    float_beside, quantized_beside = beside(params, q, X)
    after = plain(params, X)

    assert traces == 1
    np.testing.assert_array_equal(before, after_capture)
    np.testing.assert_array_equal(before, after)
    np.testing.assert_allclose(float_beside, before, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(quantized_beside, quantized, rtol=1e-5, atol=1e-5)
    assert float(jnp.abs(quantized - before).max()) > 1e-3  # it was quantized indeed


def test_modules_that_flax_jits_are_traced_anew_in_every_run(setting):
    """An older trace would bring its own interceptor along: nothing seen, or an older mask."""
    mlp, params, _ = setting
    options = {"transform": "hadamard", "sample_tokens": 32}

    def run(mask=None, **kwargs):
        config = wush_jax.Config(**options, **kwargs)
        jitted, report = wush_jax.quantize(
            {"mlp": params},
            [X],
            model=models.JittedOnce(),
            config=config,
            mask=mask,
            return_report=True,
        )
        plain = wush_jax.quantize(params, [X], model=mlp, config=config, mask=mask)
        for name, layer in plain.items():
            kernel, alone = jitted["mlp"][name]["kernel"], layer["kernel"]
            assert kernel.format == alone.format
            np.testing.assert_array_equal(kernel.codes, alone.codes)
        return [row.tokens for row in report.layers]

    for name in ("mxfp4", "nvfp4", "int8"):
        assert run(format=name) == [64, 64]
    assert run(lambda batch: jnp.arange(16)[None] < jnp.full((4, 1), 10)) == [40, 40]


def test_params_are_not_modified(setting):
    _, params, q = setting
    assert set(params) == {"up", "down"}
    assert set(params["up"]) == {"kernel", "bias"}
    assert set(q["up"]) == {"kernel", "bias"}
    assert q["up"]["bias"] is params["up"]["bias"]
    assert not is_quantized(params["up"]["kernel"])


def test_jit_compiles_once(setting):
    model, _, q = setting
    traces = 0

    @jax.jit
    def run(q, x):
        nonlocal traces
        traces += 1
        return wush_jax.apply(model, q, x)

    for i in range(3):
        run(q, X + i).block_until_ready()
    assert traces == 1


def test_compiled_arguments_hold_no_float_kernel_and_no_callback(setting):
    model, params, q = setting
    lowered = jax.jit(lambda q, x: wush_jax.apply(model, q, x)).lower(q, X)
    text = lowered.as_text()
    signature = text[text.index("@main(") : text.index("->", text.index("@main("))]
    arguments = re.findall(r"%arg\d+: tensor<([^>]*)>", signature)
    assert any(a.endswith("ui8") for a in arguments)
    kernels = {tuple(params[name]["kernel"].shape) for name in ("up", "down")}
    floats = [a.split("x") for a in arguments if not a.endswith("i8")]
    shapes = {tuple(int(n) for n in parts[:-1]) for parts in floats}
    assert shapes.isdisjoint(kernels | {s[::-1] for s in kernels})
    assert "callback" not in text


def test_transformations_compose(setting):
    model, _, q = setting
    run = jax.jit(lambda q, x: wush_jax.apply(model, q, x))
    whole = run(q, X)
    mapped = jax.vmap(run, in_axes=(None, 0))(q, X)
    np.testing.assert_allclose(mapped, whole, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda x: run(q, x).sum())(X)
    exact = jax.grad(lambda x: model.apply({"params": wush_jax.dequantize(q)}, x).sum())(X)
    cosine = jnp.vdot(gradient, exact) / (jnp.linalg.norm(gradient) * jnp.linalg.norm(exact))
    assert cosine > 0.98  # straight-through: the gradient of the model without rounding


def test_nan_stays_with_its_token(setting):
    model, _, q = setting
    poisoned = wush_jax.apply(model, q, X.at[1, 3, 5].set(jnp.nan))
    clean = wush_jax.apply(model, q, X)
    assert jnp.isnan(poisoned[1, 3]).all()
    others = jnp.ones((4, 16), bool).at[1, 3].set(False)
    np.testing.assert_array_equal(poisoned[others], clean[others])


def test_whole_variables_come_back(setting):
    model, params, q = setting
    whole = wush_jax.quantize({"params": params}, [X], model=model, config=CONFIG)
    np.testing.assert_array_equal(wush_jax.apply(model, whole, X), wush_jax.apply(model, q, X))


def test_explain_and_implementation(setting):
    model, params, q = setting
    explanation = wush_jax.explain(q)
    assert {row.path: row.implementation for row in explanation.layers} == {
        "up": "xla",
        "down": "xla",
    }
    assert "mxfp4/wush" in str(explanation)
    same = wush_jax.apply(model, q, X, implementation="xla")
    np.testing.assert_array_equal(same, wush_jax.apply(model, q, X))
    with pytest.raises(ValueError, match="unknown implementation 'fast'"):
        wush_jax.apply(model, q, X, implementation="fast")
    with pytest.raises(ValueError, match="no quantized kernel"):
        wush_jax.explain(params)


def test_donated_float_kernels_are_freed():
    model = models.Mlp()
    params = models.init(model, X)["params"]
    kernel, bias = params["up"]["kernel"], params["up"]["bias"]
    wush_jax.quantize(params, [X], model=model, config=CONFIG, donate=True)
    assert kernel.is_deleted()
    assert not bias.is_deleted()
