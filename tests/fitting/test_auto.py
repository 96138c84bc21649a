"""Transform "auto": the held-back tokens decide, few tokens do not, and the report repeats it."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from wush_jax.config import Config
from wush_jax.fitting import auto
from wush_jax.statistics import moments
from wush_jax.statistics.observation import observe
from wush_jax.statistics.running import Statistics
from wush_jax.transforms.spec import Spec, parse

K, N, TOKENS = 64, 48, 1024
KEY = jax.random.key(3)
CONFIG = Config(
    transform="auto",
    candidates=("identity", "diagonal_hadamard", "wush", "wush-64"),
    gauges=1,
    sample_tokens=256,
)


def layer(seed: int, spread: float = 1.0) -> tuple[jax.Array, jax.Array]:
    """Inputs of channels that correlate and differ in size, and a kernel likewise."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(K, K)) / np.sqrt(K) + np.eye(K)
    x = rng.normal(size=(TOKENS, K)) * np.exp(spread * rng.normal(size=K)) @ mix
    w = rng.normal(size=(K, N)) * np.exp(spread * rng.normal(size=(K, 1)) / 2)
    return jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)


def quantized(x: jax.Array, w: jax.Array, config: Config = CONFIG):
    params = {"layer": {"kernel": w}}
    return wush_jax.quantize(params, [{"layer": x}], config=config, key=KEY, return_report=True)


def test_correlated_inputs_take_the_wide_transform_and_the_report_says_why():
    x, w = layer(0)
    qparams, report = quantized(x, w)
    (row,) = report.layers
    assert (row.transform, row.block) == ("wush", 64)
    assert row.online == 64 / N
    assert set(row.candidates) == {"hadamard", *CONFIG.candidates}
    assert row.candidates["hadamard"] == 0.0  # the reference
    assert row.candidates["wush-64"] == min(row.candidates.values()) < -0.1
    assert qparams["layer"]["kernel"].block == 64


def test_where_nothing_is_to_be_gained_no_transform_is_fitted():
    """Inputs and weights lie on the grid as they are: the identity makes no error at all."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.choice([-1.5, -0.75, 0.75, 1.5], size=(TOKENS, K)), jnp.float32)
    w = jnp.asarray(rng.choice([-1.0, -0.5, 0.5, 1.0], size=(K, N)), jnp.float32)
    _, report = quantized(x, w)
    assert report.layers[0].transform == "identity"
    assert report.layers[0].error < 1e-6


def test_rules_of_the_report_repeat_the_choice():
    x, w = layer(2)
    _, report = quantized(x, w)
    again, second = quantized(x, w, Config(gauges=1, sample_tokens=256, rules=report.rules()))
    first = report.layers[0]
    assert (second.layers[0].transform, second.layers[0].block) == (first.transform, first.block)
    assert second.layers[0].error == pytest.approx(first.error, rel=1e-5)
    assert again["layer"]["kernel"].transform_name == first.transform


def test_candidates_whose_blocks_do_not_fit_are_left_out():
    config = dataclasses.replace(CONFIG, candidates=("wush-64", "wush-128", "identity"))
    options = auto._options(config.layer(), 192)
    assert list(options) == ["hadamard", "wush-64", "identity"]
    assert options["wush-64"].block == 64
    assert options["identity"].block == 32  # the group's size


def test_held_back_tokens_are_in_no_moment():
    x, _ = layer(4)
    seen = Statistics.start(observe(x, K, 256, None), KEY)
    left, rows, valid = auto._hold_back(seen)
    assert int(valid.sum()) == 128
    assert int(left.moments.count) == TOKENS - 128
    total = left.moments.total + moments.of(rows, K).total
    np.testing.assert_allclose(total, seen.moments.total, rtol=1e-4, atol=1e-2)
    kept = {tuple(row) for row in np.asarray(left.rows)}
    assert not kept & {tuple(row) for row in np.asarray(rows)}

    few = Statistics.start(observe(x[:64], K, 256, None), KEY)
    left, _, valid = auto._hold_back(few)
    assert int(valid.sum()) > 16  # more than a quarter of all: moments keep them
    assert int(left.moments.count) == 64


def test_what_wins_on_a_few_tokens_alone_does_not_win():
    """Both means must improve: the sum, where massive tokens count, and that of all alike."""
    rng = np.random.default_rng(0)
    weights = rng.exponential(size=(200, 64))
    signal = np.ones(64)
    signal[0] = 1000.0
    reference = np.stack([signal * 0.01, signal])
    massive = reference.copy()
    massive[0, 0] /= 4  # better on the massive token,
    massive[0, 1:] *= 1.5  # worse on all others
    even = reference.copy()
    even[0] *= 0.9
    assert massive[0].sum() < 0.4 * reference[0].sum()
    assert auto._score(massive, reference, weights) > 0.3
    assert auto._score(even, reference, weights) == pytest.approx(np.log(0.9))
    assert auto._score(reference, reference, weights) == 0.0


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("wush", Spec("wush", 0, 1.0)),
        ("wush-128@0.75", Spec("wush", 128, 0.75)),
        ("diagonal_hadamard@0.5", Spec("diagonal_hadamard", 0, 0.5)),
    ],
)
def test_candidates_are_read(text, spec):
    assert parse(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [("wush-", "names no"), ("wush-48", "48"), ("wush@2", "between 0 and 1"), ("w ush", "no")],
)
def test_candidates_that_cannot_be_read_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse(text)
