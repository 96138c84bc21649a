"""Exponents of fast kernels: what they promise about exactness, and what `quantize` records."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import wush_jax
from tests.support import flax_models as models
from wush_jax import formats
from wush_jax.formats import exactness as exponents
from wush_jax.formats.exactness import E4M3, E5M2, FLOAT16, LEAST_HEADROOM, SUM, Range

MXFP4, NVFP4 = formats.get_format("mxfp4"), formats.get_format("nvfp4")
ranges = st.tuples(st.integers(-40, 20), st.integers(0, 30)).map(lambda r: Range(r[0], sum(r)))


@settings(deadline=None, max_examples=200)
@given(ranges, ranges)
def test_float8_means_that_every_group_is_in_the_window(weights, activations):
    held = exponents.choose(weights, activations, MXFP4, MXFP4)
    assert held.shift + held.offset == SUM
    kind = exponents.exact_in(weights, activations, held, MXFP4, MXFP4)
    low, high = weights.low + held.offset, weights.high + held.offset
    fits = E4M3[0] <= low and high <= E4M3[1]
    roomy = activations.high + held.shift <= E5M2[1] - LEAST_HEADROOM
    assert (kind == "float8") == (fits and roomy)
    if kind == "float16":
        assert FLOAT16[0] <= low
        assert high <= FLOAT16[1]
    if weights.high - weights.low > FLOAT16[1] - FLOAT16[0]:
        assert kind == "float32"


@pytest.mark.parametrize("balance", [-8, -4, 0, 4, 8])
def test_usual_layers_fit_with_headroom(balance):
    """Seven octaves on either side, however the transform balances them."""
    weights, activations = Range(-10 + balance, -4 + balance), Range(-5 - balance, 2 - balance)
    held = exponents.choose(weights, activations, MXFP4, MXFP4)
    assert exponents.exact_in(weights, activations, held, MXFP4, MXFP4) == "float8"
    assert activations.high + held.shift == E5M2[1] - exponents.HEADROOM


def test_every_window_is_exact():
    values = np.array([0.5, 1, 1.5, 2, 3, 4, 6])
    for dtype, (low, high), factor in (
        (jnp.float8_e4m3fn, E4M3, 1),
        (jnp.float8_e5m2, E5M2, 1),
        (jnp.float16, FLOAT16, 2.0**-5),
    ):
        for e in range(low, high + 1):
            exact = values * 2.0**e * factor
            np.testing.assert_array_equal(np.asarray(jnp.asarray(exact, dtype), np.float64), exact)
        # what limits float16 above is the multiplier of the kernels, 2^(14 - 5 + e)
        for e in (low - 1, high + 1) if factor == 1 else (low - 1,):
            exact = values * 2.0**e * factor
            assert (np.asarray(jnp.asarray(exact, dtype), np.float64) != exact).any()


def test_ranges_are_of_what_is_not_zero():
    x = np.zeros((2, 64), np.float32)
    x[0, :32], x[1, 32:] = 2.0**-20, 3.5
    q = formats.quantize(jnp.asarray(x), "mxfp4")
    assert [int(v) for v in exponents.of_groups(q.scales, q.codes, MXFP4)] == [-20, 1]
    assert [int(v) for v in exponents.of_values(jnp.asarray([0.0, -0.3, 5.0]))] == [-2, 2]
    assert [int(v) for v in exponents.of_values(jnp.zeros(3))] == [0, 0]


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(16, name="a")(x) + nn.Dense(16, name="b")(x)


def quantized(config, spread=0):
    x = jax.random.normal(jax.random.key(0), (64, 64))
    params: Any = models.init(Two(), x)["params"]
    wide = jnp.exp2(-spread * jnp.arange(16.0) / 15)  # output channels over ``spread`` octaves
    params["b"]["kernel"] = params["b"]["kernel"] * wide[None]
    return wush_jax.quantize(params, [x], model=Two(), config=config), x


@pytest.mark.parametrize(("spread", "kind"), [(0, "float8"), (19, "float16"), (40, "float32")])
def test_quantize_records_what_fits(spread, kind):
    qparams, x = quantized(wush_jax.Config(transform="identity"), spread)
    a, b = qparams["a"]["kernel"], qparams["b"]["kernel"]
    assert b.exact_in == kind
    assert (b.exponents is None) == (kind == "float32")
    if kind == "float8":
        np.testing.assert_array_equal(a.exponents, b.exponents)  # they share their rows
        assert a.exponents.shape == (1, 2)
        assert int(a.exponents.sum()) == SUM
    answer = jax.jit(wush_jax.apply, static_argnums=0)(Two(), qparams, x)
    assert np.isfinite(np.asarray(answer)).all()


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"format": "nvfp4"}, "float16"),
        ({"format": "nvfp4", "act_format": None}, "float16"),
        ({"act_format": None}, "float16"),
        ({"format": "int4"}, "float32"),
        ({"act_format": "nvfp4"}, "float32"),
    ],
)
def test_other_formats(options, kind):
    config = wush_jax.Config(**options, gauges=1)
    qparams, x = quantized(config)
    assert qparams["a"]["kernel"].exact_in == kind
    abstract = jax.eval_shape(lambda: qparams)
    params = models.init(Two(), x)["params"]
    struct = wush_jax.abstract_quantize(params, [x], model=Two(), config=config)
    assert jax.tree.structure(struct) == jax.tree.structure(abstract)


@pytest.mark.parametrize("fmt", ["mxfp4", "mxfp4/ocp", "nvfp4"])
def test_global_scales_multiply_to_a_power_of_two(fmt):
    fmt = formats.get_format(fmt)
    act = formats.get_format(fmt.name)
    scale = formats.activation_scale(act, fmt)
    assert scale is not None
    assert fmt.global_scale is not None
    assert act.global_scale is not None
    assert np.frexp(np.float32(scale) * np.float32(fmt.global_scale))[0] == 0.5
    assert 0.7 < scale / act.global_scale < 1.42
