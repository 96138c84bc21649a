"""Each layer's error on held-out batches against the same sums by hand."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import flax_models
from wush_jax import Config, layer_errors
from wush_jax.layers.trees import as_variables
from wush_jax.ops import online as ops

KEY = jax.random.key(7)
CONFIG = Config(transform="hadamard", gauges=1, sample_tokens=16)


class Step(nn.Module):
    """A step of a scan."""

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(32, name="dense")(x)), None


class Everything(nn.Module):
    """A plain layer, a stack of two, one that is called twice, and experts."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(32, name="plain")(x)
        stack = nn.scan(Step, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        x, _ = stack(name="steps")(x, None)
        twice = nn.Dense(32, name="twice")
        x = twice(nn.relu(twice(x)))
        return nn.DenseGeneral(32, batch_dims=(0,), name="experts")(x)


MODEL = Everything()
X = (
    jax.random.normal(KEY, (3, 3, 8, 32))
    * np.sqrt(np.arange(1, 33, dtype=np.float32))[None, None, None]
)
PARAMS: Any = jax.jit(MODEL.init)(KEY, X[0])["params"]
MASK = jnp.arange(8)[None] < jnp.array([[3], [8], [5]])


@pytest.fixture(scope="module")
def qparams() -> Any:
    return wush_jax.quantize(PARAMS, X[:1], model=MODEL, config=CONFIG)


@jax.jit
def by_hand(qparams: Any, x: Any, keep: Any) -> dict[str, Any]:
    """Path -> [2], ‖y - xW‖² and ‖xW‖² of one batch, layer by layer."""
    found: dict[str, Any] = {}

    def dense(x, path, params, quantized):
        y, exact = ops.linear(x, quantized), jnp.matmul(x, params["kernel"], precision="highest")
        kept = jnp.broadcast_to(keep[..., None], exact.shape)
        sums = [jnp.sum(jnp.square(v), where=kept) for v in (y - exact, exact)]
        found[path] = found.get(path, 0) + jnp.stack(sums)
        bias = params["bias"]
        return exact + (
            bias[:, None] if bias.ndim > 1 else jnp.expand_dims(bias, range(exact.ndim - 1))
        )

    def call(x, name):
        return dense(x, name, PARAMS[name], qparams[name]["kernel"])

    x = call(x, "plain")
    for i in range(2):
        step = jax.tree.map(lambda leaf, i=i: leaf[i], PARAMS["steps"]["dense"])
        kernel = jax.tree.map(lambda leaf, i=i: leaf[i], qparams["steps"]["dense"]["kernel"])
        x = nn.relu(dense(x, "steps/dense", step, kernel))
    x = call(nn.relu(call(x, "twice")), "twice")
    call(x, "experts")
    return found


def expected(qparams: Any, keep: Any) -> dict[str, float]:
    sums = [by_hand(qparams, x, keep) for x in X]
    totals = {path: np.sum([batch[path] for batch in sums], axis=0) for path in sums[0]}
    return {path: float(total[0] / total[1]) for path, total in totals.items()}


def test_errors_are_those_by_hand(qparams):
    found = layer_errors(MODEL, PARAMS, qparams, X)
    assert set(found) == {"plain", "steps/dense", "twice", "experts"}
    assert found == pytest.approx(expected(qparams, jnp.ones((3, 8), bool)), rel=1e-3)
    assert all(1e-3 < error < 0.1 for error in found.values())


def test_masked_tokens_do_not_count(qparams):
    """Experts have no axes like the mask's: as in calibration, it does not apply to them."""
    garbage = jnp.where(MASK[..., None], X, 1e3)
    found = layer_errors(
        MODEL, {"params": PARAMS}, {"params": qparams}, iter(garbage), mask=lambda batch: MASK
    )
    wanted = expected(qparams, MASK)
    for path in ("plain", "steps/dense", "twice"):
        assert found[path] == pytest.approx(wanted[path], rel=1e-3)


def test_nan_names_the_layer_and_batch_unless_masked(qparams):
    bad = X.at[1, 0, 7, 0].set(jnp.nan)
    only = {**qparams, "experts": PARAMS["experts"]}
    with pytest.raises(ValueError, match="plain: NaN or Inf in its output on batch 1; mask"):
        layer_errors(MODEL, PARAMS, only, bad)
    found = layer_errors(MODEL, PARAMS, only, bad, mask=lambda batch: MASK)
    assert np.isfinite(list(found.values())).all()


def test_modules_that_flax_jits_are_traced_anew():
    """Flax keeps their traces for the process: an older one would bring its own mask along."""
    jitted = nn.jit(Step)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jitted(name="step")(x, None)[0]

    params = {"step": {"dense": PARAMS["plain"]}}
    qparams = wush_jax.quantize(params, X[:1], model=Model(), config=CONFIG)
    plain = {"step": {"dense": {"kernel": qparams["step"]["dense"]["kernel"]}}}
    masks = (None, lambda batch: MASK, lambda batch: ~MASK)
    errors = [layer_errors(Model(), params, plain, X, mask=mask)["step/dense"] for mask in masks]
    assert len(set(errors)) == 3
    assert min(errors[1:]) < errors[0] < max(errors[1:])


def test_kernels_shared_by_the_steps_of_a_scan_are_refused(qparams):
    model = nn.RNN(nn.SimpleCell(32))
    params = jax.jit(model.init)(KEY, X[0])["params"]
    quantized = {**params["cell"], "i": {**params["cell"]["i"], **qparams["plain"]}}
    with pytest.raises(NotImplementedError, match=r"shared among the steps of an nn\.scan"):
        layer_errors(model, params, {"cell": quantized}, X)


@pytest.mark.parametrize("whole", [False, True])
def test_refusals(qparams, whole):
    def refused(qparams, batches):
        form = as_variables(qparams) if whole else qparams
        return layer_errors(MODEL, PARAMS, form, batches)

    with pytest.raises(ValueError, match="qparams hold no quantized kernel"):
        refused(PARAMS, X)
    with pytest.raises(ValueError, match="batches is empty"):
        refused(qparams, [])
    if whole:
        return
    extra = {**qparams, "idle": qparams["plain"]}
    with pytest.raises(ValueError, match="idle: no batch reached this layer"):
        refused(extra, X)


def test_a_layer_whose_output_is_zero():
    model = flax_models.Mlp(hidden=32)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS["plain"])
    params = {"up": PARAMS["plain"], "down": {"kernel": zeros["kernel"]}}
    qparams = wush_jax.quantize(params, X[:1], model=model, config=CONFIG)
    assert layer_errors(model, params, qparams, X[:1])["down"] == 0
    wrong = {**qparams, "down": qparams["up"]}
    assert layer_errors(model, params, wrong, X[:1])["down"] == float("inf")
