"""Gauges: what they leave alone, that the best one is chosen, and what that is worth."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.formats_reference import fake_quantize
from wush_jax import formats
from wush_jax.config import Config
from wush_jax.fitting import fit, gauge, solve
from wush_jax.statistics import moments
from wush_jax.transforms import blocks, families, loss

candidates = gauge._candidates


def data(seed, tokens, features, outputs):
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(features, features)) / np.sqrt(features) + np.eye(features)
    x = rng.normal(size=(tokens, features)) * np.exp(rng.normal(size=features)) @ mix
    w = rng.normal(size=(features, outputs)) * np.exp(rng.normal(size=(features, 1)) / 2)
    return jnp.asarray(x, jnp.float32), jnp.asarray(w, jnp.float32)


def layer(transform="wush", fmt="nvfp4", **options):
    return Config(fmt, transform=transform, **options).layer()


@functools.partial(jax.jit, static_argnames="config")
def fitted(x, w, config):
    """(transform without gauge, damped Sx, damped Sw, Sx)."""
    sx = moments.second_moment(moments.of(x, config.block))
    sw = moments.weight_moment(w, config.block)
    pair = families.make(config.transform, sx, sw, key=jax.random.key(1))
    return pair, blocks.damp(sx, 1e-2), blocks.damp(sw, 1e-2), sx


def gauged(pair, rotation, scale):
    r = np.asarray(rotation, np.float64)
    forward, inverse = (np.asarray(a, np.float64) for a in (pair.forward, pair.inverse_transpose))
    return scale * r @ forward, r @ inverse / scale


@pytest.mark.parametrize("transform", ["wush", "diagonal_hadamard", "wus", "diagonal", "random"])
def test_every_candidate_is_a_gauge(transform):
    """TᵀT up to γ², the pairing and J stay; the first candidate is T itself."""
    config = layer(transform, gauges=8)
    x, w = data(0, 64, 32, 24)
    pair, sx, sw, _ = fitted(x, w, config)
    rotations, scales = candidates(jax.random.key(0), config)
    assert rotations.shape == (8, 16, 16)
    np.testing.assert_allclose(rotations[0], np.eye(16), atol=1e-6)
    assert scales[0] == 1
    assert ((scales >= 1) & (scales < 2)).all()
    assert len(set(np.asarray(scales).tolist())) == 8
    before = loss.predicted_loss(pair, sx, sw)
    forward, inverse = (np.asarray(a, np.float64) for a in gauged(pair, rotations[0], 1))
    for rotation, scale in zip(rotations, np.asarray(scales, np.float64), strict=True):
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-6)
        t, t_inverse = gauged(pair, rotation, scale)
        gram = forward.swapaxes(1, 2) @ forward
        error = np.abs(t.swapaxes(1, 2) @ t / scale**2 - gram).max()
        assert error <= 1e-5 * np.abs(gram).max()
        np.testing.assert_allclose(
            t.swapaxes(1, 2) @ t_inverse, forward.swapaxes(1, 2) @ inverse, atol=1e-4
        )
        turned = blocks.Transform(jnp.float32(t), jnp.float32(t_inverse))
        if transform == "wush":  # flat diagonals: any rotation of this family keeps J
            np.testing.assert_allclose(loss.predicted_loss(turned, sx, sw), before, rtol=1e-4)


def brute_force(pair, rotation, scale, x, w, config):
    """Mean squared output error of each block on the rows, float64 around the quantizer."""
    t, inverse = gauged(pair, rotation, scale)
    blocks, size = t.shape[:2]
    rows = np.asarray(x, np.float64).reshape(len(x), blocks, size)
    kernel = np.asarray(w, np.float64).reshape(blocks, size, -1)
    exact_x = np.einsum("cij,mcj->cmi", t, rows)
    exact_w = np.einsum("cij,cjn->cni", inverse, kernel)

    def rounded(a, fmt, scale=None):
        if fmt is None:
            return a
        return np.asarray(fake_quantize(jnp.float32(a), fmt, global_scale=scale), float)

    act = config.act_format
    act_scale = None if act is None else formats.activation_scale(act, config.format)
    y = rounded(exact_x, act, act_scale) @ rounded(exact_w, config.format).swapaxes(1, 2)
    error = y - exact_x @ exact_w.swapaxes(1, 2)
    return (error**2).sum((1, 2)) / len(x)


@pytest.mark.parametrize(
    ("transform", "fmt", "act"),
    [("wush", "nvfp4", "same"), ("wus", "nvfp4", None)],
)
def test_the_best_candidate_is_chosen(transform, fmt, act):
    """When the rows are all that was seen, the objective is those rows' true output error."""
    config = layer(transform, fmt, act_format=act, gauges=8)
    x, w = data(1, 48, 64, 24)
    pair, *_, sx = fitted(x, w, config)
    key = jax.random.key(3)
    halves = [w[:, :10], w[:, 10:]]  # two layers that share the input
    chosen = gauge.choose(pair, sx, halves, x, jnp.ones(len(x), bool), config, key)
    rotations, scales = candidates(key, config)
    each = zip(rotations, np.asarray(scales, np.float64), strict=True)
    errors = np.stack([brute_force(pair, r, s, x, w, config) for r, s in each])
    best = errors.argmin(0)
    assert len(set(best)) > 1  # the blocks disagree, so this is a test
    for c, i in enumerate(best):
        t, inverse = gauged(pair, rotations[i], float(scales[i]))
        np.testing.assert_allclose(chosen.forward[c], t[c], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(chosen.inverse_transpose[c], inverse[c], rtol=1e-4, atol=1e-5)
    assert (errors.min(0) <= errors[0]).all()
    assert errors.min(0).sum() < 0.97 * errors[0].sum()


def test_invalid_rows_do_not_vote():
    config = layer(gauges=8)
    x, w = data(2, 48, 64, 24)
    pair, *_, sx = fitted(x, w, config)
    valid = jnp.arange(48) < 30
    dirty = jnp.where(valid[:, None], x, jnp.nan)
    choose = functools.partial(gauge.choose, pair, sx, [w], config=config, key=jax.random.key(0))
    found = choose(rows=dirty, valid=valid)
    clean = choose(rows=jnp.where(valid[:, None], x, 0), valid=valid)
    jax.tree.map(np.testing.assert_array_equal, found, clean)
    again = choose(rows=dirty, valid=valid)
    jax.tree.map(np.testing.assert_array_equal, found, again)


@pytest.mark.parametrize(
    "options",
    [
        {"gauges": 1, "transform": "diagonal"},
        {"transform": "hadamard"},
        {"transform": "identity"},
        {"fmt": "mxfp4", "transform": "diagonal", "transform_block": 16},  # half a group
    ],
)
def test_nothing_to_choose(options):
    config = layer(**options)
    x, w = data(4, 48, 64, 24)
    pair, *_, sx = fitted(x, w, config)
    valid = jnp.ones(len(x), bool)
    assert gauge.choose(pair, sx, [w], x, valid, config, jax.random.key(0)) is pair


def test_massive_activations():
    """One channel 30 times larger in 3 % of the tokens: worth a clear part of the error."""
    config = layer("wush", "mxfp4")
    plain = dataclasses.replace(config, gauges=1)
    measured = solve.solve
    ratios = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(1024, 64)).astype(np.float32)
        x[rng.random(1024) < 0.03, 7] = 30  # one value, as massive activations have
        x, w = jnp.asarray(x), jnp.asarray(rng.normal(size=(64, 48)), jnp.float32)
        seen, valid = moments.of(x, config.block), jnp.ones(256, bool)
        losses = []
        for c in (plain, config):
            fitted = fit.fit(seen, x[:256], valid, [w], jax.random.key(seed), c)
            moment = moments.second_moment(seen)
            solution = measured(w, fitted.transform.forward, moment, x, jnp.ones(1024, bool), plain)
            losses.append(float(solution.measured.error))
        ratios.append(losses[1] / losses[0])
    assert max(ratios) < 0.97, ratios
    assert np.mean(ratios) < 0.94, ratios
