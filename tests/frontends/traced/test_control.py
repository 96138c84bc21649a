"""Loops, branches and stacks: layers inside are found, calibrated on all their uses, and run."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax

CONFIG = wush_jax.Config(format="int8", gauges=1, sample_tokens=32)
RNG = np.random.default_rng(3)
D, L = 64, 3


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape) / np.sqrt(shape[-2]), jnp.float32)


STACK = {"w": normal(L, D, D), "v": normal(L, D, D)}
BATCHES = [(normal(2, 8, D),) for _ in range(2)]


def block(x, w, v):
    return jnp.tanh(x @ w) + x @ v


def scanned(p, x):
    return jax.lax.scan(lambda x, s: (block(x, s["w"], s["v"]), None), x, p)[0]


def unrolled(p, x):
    for i in range(L):
        x = block(x, p["w"][i], p["v"][i])
    return x


def indexed(p, x):
    return jax.lax.fori_loop(0, L, lambda i, x: block(x, p["w"][i], p["v"][i]), x)


def carried(p, x):
    """As written by those who carry all they have through a while loop."""

    def body(state):
        i, x, p = state
        return i + 1, block(x, p["w"][i], p["v"][i]), p

    return jax.lax.while_loop(lambda state: state[0] < L, body, (0, x, p))[1]


def rematerialised(p, x):
    body = jax.checkpoint(lambda x, s: (block(x, s["w"], s["v"]), None))
    return jax.lax.scan(body, x, p, reverse=False)[0]


STACKS = [scanned, unrolled, indexed, carried, rematerialised]


@pytest.fixture(scope="module")
def by_scan():
    return wush_jax.quantize(STACK, BATCHES, model=scanned, config=CONFIG, return_report=True)


@pytest.mark.parametrize("model", STACKS, ids=lambda f: f.__name__)
def test_layers_of_a_stack_are_solved_one_by_one(model, by_scan):
    q, report = wush_jax.quantize(STACK, BATCHES, model=model, config=CONFIG, return_report=True)
    expected, found = ({r.path: r for r in each.layers} for each in (by_scan[1], report))
    assert set(found) == {f"{name}[{i}]" for name in STACK for i in range(L)} == set(expected)
    assert all(found[path].tokens == expected[path].tokens == 32 for path in found)
    for name in STACK:
        assert q[name].shape == (L, D, D)
        np.testing.assert_allclose(q[name].dequantize(), by_scan[0][name].dequantize(), atol=3e-2)


@pytest.mark.parametrize("model", STACKS, ids=lambda f: f.__name__)
def test_a_stack_runs_the_same_however_it_is_written(model, by_scan):
    q, x = by_scan[0], BATCHES[0][0]
    y = wush_jax.quantized(model)(q, x)
    np.testing.assert_allclose(y, wush_jax.quantized(scanned)(q, x), atol=2e-3)
    exact = model(STACK, x)
    assert float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)) < 0.02
    errors = wush_jax.layer_errors(model, STACK, q, BATCHES)
    assert set(errors) == set(STACK)
    assert max(errors.values()) < 1e-3


def test_a_stack_reversed():
    def backwards(p, x):
        return jax.lax.scan(lambda x, s: (block(x, s["w"], s["v"]), None), x, p, reverse=True)[0]

    q = wush_jax.quantize(STACK, BATCHES, model=backwards, config=CONFIG)
    exact = backwards(STACK, BATCHES[0][0])
    y = wush_jax.quantized(backwards)(q, BATCHES[0][0])
    assert float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)) < 0.02


def shared(p, x):
    return jax.lax.scan(lambda x, _: (jnp.tanh(x @ p["w"]), None), x, None, length=4)[0]


def until(p, x):
    def body(state):
        return state[0] + 1, jnp.tanh(state[1] @ p["w"])

    return jax.lax.while_loop(lambda state: state[0] < 4, body, (0, x))[1]


def in_a_row(p, x):
    for _ in range(4):
        x = jnp.tanh(x @ p["w"])
    return x


@pytest.mark.parametrize("model", [shared, until, in_a_row], ids=lambda f: f.__name__)
def test_a_layer_used_several_times_is_calibrated_on_all_uses(model):
    params = {"w": normal(D, D)}
    q, report = wush_jax.quantize(params, BATCHES, model=model, config=CONFIG, return_report=True)
    assert [(r.path, r.tokens) for r in report.layers] == [("w", 4 * 32)]
    y, exact = wush_jax.quantized(model)(q, BATCHES[0][0]), model(params, BATCHES[0][0])
    assert float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)) < 0.02


def test_a_branch_counts_where_it_is_taken():
    params = {"positive": normal(D, D), "negative": normal(D, D)}

    def model(p, x, sign):
        return jax.lax.cond(sign > 0, lambda: x @ p["positive"], lambda: x @ p["negative"])

    (x,), (z,) = BATCHES
    q, report = wush_jax.quantize(
        params,
        [(x, jnp.asarray(1)), (z, jnp.asarray(1)), (x[:1], jnp.asarray(-1))],
        model=model,
        config=CONFIG,
        return_report=True,
    )
    tokens = {row.path: row.tokens for row in report.layers}
    assert tokens == {"positive": 32, "negative": 8}
    y, exact = wush_jax.quantized(model)(q, x, jnp.asarray(-1)), x @ params["negative"]
    assert float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)) < 0.03


def test_stacks_in_stacks():
    params = {"w": normal(2, L, D, D)}

    def model(p, x):
        def outer(x, group):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, group)[0], None

        return jax.lax.scan(outer, x, p["w"])[0]

    q, report = wush_jax.quantize(params, BATCHES, model=model, config=CONFIG, return_report=True)
    assert {r.path for r in report.layers} == {f"w[{i}, {j}]" for i in range(2) for j in range(L)}
    y, exact = wush_jax.quantized(model)(q, BATCHES[0][0]), model(params, BATCHES[0][0])
    assert float(jnp.linalg.norm(y - exact) / jnp.linalg.norm(exact)) < 0.02


def test_custom_derivatives_are_stepped_into():
    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, None))
    q = wush_jax.quantize(
        {"w": normal(D, D)}, BATCHES, model=lambda p, x: product(x, p["w"]), config=CONFIG
    )
    y = wush_jax.quantized(lambda p, x: product(x, p["w"]))(q, BATCHES[0][0])
    assert y.shape == (2, 8, D)
