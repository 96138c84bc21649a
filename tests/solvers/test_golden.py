"""Losses of GPTQ on a trained transformer's layers, against those of the paper's code."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wush_jax.config import Config
from wush_jax.fitting import fit, measure, solve
from wush_jax.ops import online as ops
from wush_jax.statistics import moments
from wush_jax.statistics.moments import Moments

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
CASES = [("mxfp4", "hadamard", 32), ("mxfp4", "wush", 32), ("mxfp4", "wush", 128)]
CASES += [("nvfp4", "wush", 16), ("nvfp4", "wush", 128)]


@functools.cache
def golden(layer) -> tuple[dict[str, Any], dict[str, float]]:
    path = GOLDEN / f"{layer}.npz"
    if not path.exists():
        pytest.skip(f"no golden arrays at {path}")
    with np.load(path) as arrays:
        found = {name: arrays[name] for name in ("kernel", "second_moment", "tokens", "x")}
    return found, json.loads(path.with_suffix(".json").read_text())


@pytest.mark.parametrize(("fmt", "transform", "block"), CASES)
def test_golden_losses(fmt, transform, block):
    """The paper's GPTQ losses on real layers, met within 3 % as they are, and beaten in earnest.

    Beaten by 6 % in the mean although our objective is not this loss alone: it gives up some of it
    for less bias, see `solvers.objective`. Only second moments are known of the calibration
    tokens: samples are drawn with those moments.
    """
    paper = {"objective": "W", "refine": 0, "gauges": 1}
    ratios = []
    for layer in ("attention_query", "mlp_up", "mlp_down"):
        arrays, losses = golden(layer)
        expected = losses[
            f"{fmt}/{transform[:1] if transform == 'hadamard' else transform}{block}/gptq"
        ]
        common = {"format": fmt, "transform": transform, "transform_block": block, "solver": "gptq"}
        as_is = golden_loss(arrays, Config(**common, **paper).layer())
        best = golden_loss(arrays, Config(**common, scale_search=True, gauges=4).layer())
        assert as_is <= 1.03 * expected, (layer, as_is / expected)
        ratios.append(best / expected)
    assert max(ratios) <= 0.96, ratios
    assert np.exp(np.mean(np.log(ratios))) <= 0.94, ratios


def golden_loss(arrays, config):
    """All layers in one shape: with outputs of no weight, and features that nothing enters.

    The latter's second moment is the others' mean, which is what damping refers to.
    """
    kernel, x, h = (arrays[name] for name in ("kernel", "x", "second_moment"))
    features, outputs = kernel.shape
    kernel = jnp.pad(kernel, ((0, 384 - features), (0, 128 - outputs)))
    variance = np.trace(h) / features
    factor = np.linalg.cholesky(h + 1e-7 * variance * np.eye(features))
    rows = np.random.default_rng(0).normal(size=(512, 384))[:, :features] @ factor.T
    rows = jnp.asarray(np.pad(rows, ((0, 0), (0, 384 - features))), jnp.float32)
    h = np.pad(h, ((0, 384 - features), (0, 384 - features)))
    h[range(features, 384), range(features, 384)] = variance
    seen = Moments(
        jnp.asarray(h[None] * float(arrays["tokens"]), jnp.float32), jnp.uint32(arrays["tokens"])
    )
    valid = jnp.ones(512, bool)
    fitted = fit.fit(seen, rows, valid, [kernel], jax.random.key(0), config)
    moment = moments.second_moment(seen)
    solved = solve.solve(kernel, fitted.transform.forward, moment, rows, valid, config)
    return _error(solved, kernel, np.pad(x, ((0, 0), (0, 384 - features))), config)


def _error(solved, kernel, x, config):
    quantized = solve.as_kernel(solved.solution, solved.act_global_scale, kernel.shape, config)
    return float(_relative(quantized, kernel, x))


@jax.jit
def _relative(quantized, kernel, x):
    y = ops.linear(x, quantized, implementation="xla")
    return measure.relative_error(y, jnp.matmul(x, kernel, precision="highest"))
