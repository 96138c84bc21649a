"""What `quantize` accepts and what it refuses; every refusal names the module."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import flax_models as models
from wush_jax import Config, Rule
from wush_jax.layers import trees

CONFIG = Config(gauges=1, sample_tokens=32)
KEY = jax.random.key(2)
X = jax.random.normal(KEY, (4, 16, 32))
MODEL = models.Mlp()
PARAMS: Any = models.init(MODEL, X)["params"]


class Masked(nn.Module):
    """Takes a second argument, by position or by name."""

    @nn.compact
    def __call__(self, x, mask):
        return nn.Dense(32, name="dense")(x) * mask[..., None]


def test_batches_as_arrays_tuples_and_mappings():
    model, mask = Masked(), jnp.ones((4, 16))
    params = models.init(model, X, mask)["params"]
    by_position = wush_jax.quantize(params, [(X, mask)], model=model, config=CONFIG)
    by_name = wush_jax.quantize(params, [{"x": X, "mask": mask}], model=model, config=CONFIG)
    jax.tree.map(np.testing.assert_array_equal, by_position, by_name)


def test_a_generator_is_consumed_once_and_shapes_may_vary():
    batches = (X[:n] for n in (4, 2, 1))
    _, report = wush_jax.quantize(PARAMS, batches, model=MODEL, config=CONFIG, return_report=True)
    assert [row.tokens for row in report.layers] == [7 * 16, 7 * 16]


def test_masked_tokens_do_not_count():
    model = Masked()
    mask = jnp.ones((4, 16)).at[:, 10:].set(0)
    params = models.init(model, X, mask)["params"]
    options = {"model": model, "config": CONFIG, "return_report": True, "mask": lambda b: b[1]}
    q, report = wush_jax.quantize(params, [(X, mask)], **options)
    garbage = jnp.where(mask[..., None] == 0, 1e3, X)
    same, _ = wush_jax.quantize(params, [(garbage, mask)], **options)
    assert report.layers[0].tokens == 40
    jax.tree.map(np.testing.assert_array_equal, q, same)


def test_model_free_equals_with_model():
    """Captured inputs give what the model itself would have given."""
    hidden = nn.gelu(X @ PARAMS["up"]["kernel"] + PARAMS["up"]["bias"][None, None])
    free = wush_jax.quantize(PARAMS, [{"up": X, "down": hidden}], config=CONFIG)
    bound = wush_jax.quantize(PARAMS, [X], model=MODEL, config=CONFIG)
    for name in ("up", "down"):
        codes, expected = free[name]["kernel"].codes, bound[name]["kernel"].codes
        assert np.mean(np.asarray(codes) != np.asarray(expected)) < 0.02


def test_model_free_shares_by_object_and_takes_multi_axis_kernels():
    attention = models.Attention()
    params = models.init(attention, X)["params"]
    heads = jax.random.normal(KEY, (4, 16, 2, 16))
    captured = {"query": X, "key": X, "value": X + 0, "out": heads}
    q = wush_jax.quantize(params, [captured], config=CONFIG)
    assert q["key"]["kernel"].shared_input == "query"
    assert q["value"]["kernel"].shared_input is None
    assert q["out"]["kernel"].features == 32


def test_same_inputs_same_bits():
    once = wush_jax.quantize(PARAMS, [X], model=MODEL, config=CONFIG)
    again = wush_jax.quantize(PARAMS, [X], model=MODEL, config=CONFIG)
    jax.tree.map(np.testing.assert_array_equal, once, again)


def test_rules_first_match_wins_and_unused_are_reported():
    rules = (Rule("up", format="nvfp4"), Rule("u", skip=True), Rule("no_such_layer", skip=True))
    config = Config(gauges=1, sample_tokens=32, rules=rules)
    with pytest.warns(UserWarning, match="matched no layer") as caught:
        q, report = wush_jax.quantize(PARAMS, [X], model=MODEL, config=config, return_report=True)
    assert q["up"]["kernel"].format.name == "nvfp4"
    assert q["down"]["kernel"].format.name == "mxfp4"
    assert report.unused_rules == ("u", "no_such_layer")
    assert len(caught) == 2


def test_heads_stay_float_unless_a_rule_says_otherwise():
    model = models.Unrolled(layers=1)
    tokens = jnp.zeros((2, 8), int)
    params = models.init(model, tokens)["params"]
    q, report = wush_jax.quantize(params, [tokens], model=model, config=CONFIG, return_report=True)
    assert set(report.skipped) == {"lm_head"}
    assert q["embed"]["embedding"] is params["embed"]["embedding"]
    config = Config(gauges=1, sample_tokens=32, rules=(Rule("lm_head"),))
    q = wush_jax.quantize(params, [tokens], model=model, config=config)
    assert "lm_head" in trees.quantized_kernels(q)


def _with(path: str, value) -> dict:
    name = path.split("/")[0]
    return {**PARAMS, name: {**PARAMS[name], "kernel": value}}


RNN = nn.RNN(nn.SimpleCell(32))
UP = PARAMS["up"]["kernel"]
REFUSED = {
    "no batch": (lambda: wush_jax.quantize(PARAMS, [], model=MODEL), "at least one batch"),
    "nan kernel": (
        lambda: wush_jax.quantize(_with("up", UP.at[0, 0].set(jnp.nan)), [X], model=MODEL),
        "up: the kernel holds NaN or Inf",
    ),
    "inf kernel": (
        lambda: wush_jax.quantize(
            _with("up", UP.at[0, 0].set(jnp.inf)), [{"up": X, "down": jnp.ones((4, 64))}]
        ),
        "up: the kernel holds NaN or Inf",
    ),
    "nan input": (
        lambda: wush_jax.quantize(PARAMS, [X.at[0, 0, 0].set(jnp.nan)], model=MODEL),
        "up: the second moments .* NaN or Inf",
    ),
    "unseen layer": (
        lambda: wush_jax.quantize({**PARAMS, "extra": PARAMS["up"]}, [X], model=MODEL),
        "extra: this kernel was never seen",
    ),
    "everything masked": (
        lambda: wush_jax.quantize(PARAMS, [X], model=MODEL, mask=lambda b: jnp.zeros((4, 16))),
        "up: no token",
    ),
    "odd width": (
        lambda: wush_jax.quantize(
            models.init(nn.Dense(8), jnp.ones((2, 40)))["params"],
            [jnp.ones((2, 40))],
            model=nn.Dense(8),
        ),
        "K=40 .* pad=True",
    ),
    "unknown path": (
        lambda: wush_jax.quantize(PARAMS, [{"nowhere": X}]),
        "nowhere: the params hold no kernel",
    ),
    "unfitting input": (
        lambda: wush_jax.quantize(PARAMS, [{"up": jnp.ones((4, 33))}]),
        r"up: a captured input of shape \(4, 33\)",
    ),
    "missing input": (
        lambda: wush_jax.quantize(PARAMS, [{"up": X}]),
        "down: this kernel was never seen",
    ),
    "not a mapping": (lambda: wush_jax.quantize(PARAMS, [X]), "pass model="),
    "nothing left": (
        lambda: wush_jax.quantize(
            PARAMS, [X], model=MODEL, config=Config(rules=(Rule(".", skip=True),))
        ),
        "no linear layer",
    ),
    "shared kernel": (
        lambda: wush_jax.quantize(models.init(RNN, X)["params"], [X], model=RNN),
        "cell/i, cell/h: .* shared among the steps",
    ),
    "format": (lambda: Config(format="fp5"), "mxfp4"),
    "transform": (lambda: Config(transform="wish"), "unknown transform 'wish'.*wush"),
    "block": (lambda: Config(transform_block=48), "power of two"),
    "strength": (lambda: Config(strength=2), "between 0 and 1"),
    "rule option": (lambda: Rule("up", fromat="int4"), "fromat"),
    "rule pattern": (lambda: Rule("("), "not a regular expression"),
    "rule value": (lambda: Config(rules=(Rule("up", format="fp5"),)), "mxfp4"),
    "solver": (lambda: Config(solver="gtpq"), "unknown solver .* rtn, gptq"),
    "objective": (lambda: Config(objective="AW"), "WA, W"),  # type: ignore
    "candidate": (lambda: Config(transform="auto", candidates=("wsuh-64",)), "wsuh-64"),
    "candidate's D": (lambda: Config(transform="auto", candidates=("wush-48",)), "48"),
    "no candidate": (lambda: Config(transform="auto", candidates=()), "there are none"),
    "rule type": (lambda: Config(rules=("up",)), "must be a wush_jax.Rule"),  # type: ignore
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_reason(name, unchecked):
    attempt, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        attempt()
