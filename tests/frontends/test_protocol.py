"""A model of a new kind, known by its front end alone, gets all that the library has."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import tables
from wush_jax import Config, TokenScore
from wush_jax.frontends import select
from wush_jax.frontends.captured import Captured
from wush_jax.frontends.linen.front_end import Linen
from wush_jax.frontends.protocol import FrontEnd
from wush_jax.ops.online import linear

MODEL, PARAMS, BATCHES = tables.Tables(), tables.params(), tables.batches()
CONFIG = Config(gauges=1, sample_tokens=32, rules=())


class Twin(nn.Module):
    """The same arithmetic, as a Flax Linen module."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(tables.VOCABULARY, tables.WIDTH, name="embed")(tokens)
        x = nn.gelu(nn.Dense(64, use_bias=False, name="w_in")(x), approximate=True)
        return nn.Dense(tables.VOCABULARY, use_bias=False, name="w_out")(x)


TWIN = {
    "embed": {"embedding": PARAMS["embed"]},
    "w_in": {"kernel": PARAMS["w_in"]},
    "w_out": {"kernel": PARAMS["w_out"]},
}


@pytest.fixture(scope="module")
def quantized():
    return wush_jax.quantize(PARAMS, BATCHES, model=MODEL, config=CONFIG, return_report=True)


def test_every_front_end_keeps_the_protocol():
    for front in (MODEL, Captured(), Linen(Twin())):
        assert isinstance(front, FrontEnd)
        assert select.front_end(front) is front
    assert (MODEL.name, Linen(Twin()).name) == ("Tables", "Twin")


def test_a_model_of_no_known_kind_is_refused():
    with pytest.raises(ValueError, match=r"model=object: a flax\.linen\.Module, a func.*FrontEnd"):
        wush_jax.quantize(PARAMS, BATCHES, model=object())


def test_quantize_gives_what_it_gives_the_same_model_of_another_kind(quantized):
    qparams, report = quantized
    same = wush_jax.quantize(TWIN, BATCHES, model=Twin(), config=CONFIG)
    assert [row.path for row in report.layers] == ["w_in", "w_out"]
    assert qparams["embed"] is PARAMS["embed"]
    for name in ("w_in", "w_out"):
        jax.tree.map(np.testing.assert_array_equal, qparams[name], same[name]["kernel"])
    y = jax.jit(MODEL.run)({"params": qparams}, BATCHES[0])
    np.testing.assert_array_equal(
        y, jax.jit(lambda p, x: wush_jax.apply(Twin(), p, x))(same, BATCHES[0])
    )


def test_shapes_alone(quantized):
    found = wush_jax.abstract_quantize(PARAMS, BATCHES, model=MODEL, config=CONFIG)

    def shapes(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    assert shapes(found) == shapes(quantized[0])


def test_judged_by_tokens_and_by_layers(quantized):
    found = wush_jax.evaluate(MODEL, PARAMS, quantized[0], BATCHES, bootstrap=10)
    logits, rounded = (
        np.asarray(MODEL.run({"params": p}, jnp.asarray(BATCHES[0])), np.float64)
        for p in (PARAMS, quantized[0])
    )
    assert found["quantized"].kl > 0
    errors = wush_jax.layer_errors(MODEL, PARAMS, quantized[0], BATCHES[:1])
    x = PARAMS["embed"][BATCHES[0]]
    exact = x @ PARAMS["w_in"]
    error = np.linalg.norm(np.asarray(linear(jnp.asarray(x), quantized[0]["w_in"])) - exact) ** 2
    np.testing.assert_allclose(errors["w_in"], error / np.linalg.norm(exact) ** 2, rtol=1e-4)
    assert set(errors) == {"w_in", "w_out"}
    assert np.linalg.norm(rounded - logits) / np.linalg.norm(logits) < 0.5


def test_sweeps():
    configs = {"rtn": CONFIG, "hadamard": Config(gauges=1, transform="hadamard", rules=())}
    found = wush_jax.sweep(
        PARAMS, BATCHES, configs, model=MODEL, score=TokenScore(BATCHES, bootstrap=10)
    )
    assert [row.name for row in found.rows] == list(configs)
    assert all(row.metrics["kl"] > 0 for row in found.rows)
