"""Captured inputs: params of any tree and leaf names, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from wush_jax import Config

CONFIG = Config(gauges=1, sample_tokens=32, rules=())
RNG = np.random.default_rng(0)
X = RNG.normal(size=(2, 12, 32)).astype(np.float32)
W = RNG.normal(size=(32, 48)).astype(np.float32)


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({"up": {"kernel": W}}, "up"),
        ({"up": {"w": W}}, "up/w"),
        ({"layers": {"0": {"mlp": {"gating_einsum": W}}}}, "layers/0/mlp/gating_einsum"),
        ({"w": W}, "w"),
        ({"kernel": W}, ""),
    ],
)
def test_a_layer_is_its_parameter_whatever_the_leaf_is_called(params, name):
    expected = wush_jax.quantize({"up": {"kernel": W}}, [{"up": X}], config=CONFIG)["up"]["kernel"]
    q, report = wush_jax.quantize(params, [{name: X}], config=CONFIG, return_report=True)
    assert jax.tree.structure(params) == jax.tree.structure(
        q, is_leaf=lambda leaf: isinstance(leaf, wush_jax.QuantizedKernel)
    )
    (kernel,) = jax.tree.leaves(q, is_leaf=lambda leaf: isinstance(leaf, wush_jax.QuantizedKernel))
    jax.tree.map(np.testing.assert_array_equal, kernel, expected)
    assert [row.path for row in report.layers] == [name]
    assert wush_jax.layer_errors(None, params, q, [{name: X}]).keys() == {name}
    (row,) = wush_jax.explain(q).layers
    assert row.path == name


def test_rules_and_floats_by_these_names():
    config = Config(gauges=1, sample_tokens=32, rules=(wush_jax.Rule("gate/w", skip=True),))
    params = {"gate": {"w": W}, "up": {"w": W}, "norm": {"scale": np.ones(32, np.float32)}}
    q, report = wush_jax.quantize(
        params, [{"gate/w": X, "up/w": X}], config=config, return_report=True
    )
    assert q["gate"]["w"] is params["gate"]["w"]
    assert q["norm"]["scale"] is params["norm"]["scale"]
    assert isinstance(q["up"]["w"], wush_jax.QuantizedKernel)
    assert report.skipped.keys() == {"gate/w"}


def test_a_name_that_the_params_do_not_hold():
    with pytest.raises(ValueError, match=r"up: the params hold no kernel of this path; .* up/w"):
        wush_jax.quantize({"up": {"w": W}}, [{"up": X}], config=CONFIG)


def test_an_input_that_does_not_fit():
    with pytest.raises(ValueError, match=r"up/w: a captured input of shape \(2, 12\) .*\(32, 48\)"):
        wush_jax.quantize({"up": {"w": W}}, [{"up/w": jnp.ones((2, 12))}], config=CONFIG)


def test_there_is_no_model_to_run():
    q = wush_jax.quantize({"w": W}, [{"w": X}], config=CONFIG)
    with pytest.raises(ValueError, match="captured inputs run no model: pass model="):
        wush_jax.evaluate(None, {"w": W}, q, [{"w": X}])
