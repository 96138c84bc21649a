"""GPTQ, scale search and transform "auto" through `quantize`, on models of every make."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import flax_models as models
from wush_jax import Config
from wush_jax.layers import trees

KEY = jax.random.key(0)
MIX = jax.random.normal(KEY, (32, 32)) / 4 + jnp.eye(32)
X = jax.random.normal(KEY, (24, 16, 32)) @ MIX
BEST = Config(solver="gptq", scale_search=True, refine=1, gauges=1, sample_tokens=128)

apply = jax.jit(wush_jax.apply, static_argnums=0)


@pytest.mark.parametrize("act_format", ["same", None])
def test_gptq_beats_rounding_on_held_out_tokens(act_format):
    """One calibration serves both; the weights of one input's readers share its moments."""
    model = models.Mlp()
    params = models.init(model, X)["params"]
    calibration = wush_jax.calibrate(params, [X[:16]], model=model)
    found = []
    for solver in ("rtn", "gptq"):
        config = Config(
            format="int4", act_format=act_format, transform="hadamard", solver=solver, refine=0
        )
        q, report = wush_jax.quantize(params, calibration, config=config, return_report=True)
        found.append(wush_jax.layer_errors(model, params, q, [X[16:]]))
        assert {row.solver for row in report.layers} == {solver}
    assert all(found[1][path] < found[0][path] for path in found[0])
    assert np.prod([found[1][p] / found[0][p] for p in found[0]]) < 0.8


def test_stacked_layers_are_solved_slice_by_slice():
    scanned, tokens = models.Scanned(), jax.random.randint(KEY, (16, 16), 0, 50)
    params = models.init(scanned, tokens)
    q, report = wush_jax.quantize(
        params, [tokens], model=scanned, config=BEST, key=KEY, return_report=True
    )
    assert {row.solver for row in report.layers} == {"gptq+search"}
    assert len({row.path for row in report.layers}) == len(report.layers)
    logits = apply(scanned, q, tokens)
    exact = scanned.apply(params, tokens)
    assert jnp.linalg.norm(logits - exact) < 0.3 * jnp.linalg.norm(exact)
    kernel = next(iter(trees.quantized_kernels(q).values()))
    assert kernel.scales.shape[0] == scanned.layers
    assert jnp.any(kernel.codes[0] != kernel.codes[1])


def test_experts_and_auto():
    """Each expert has moments of its own; the choice is one for all, the scores the worst's."""
    model, x = models.Experts(), jnp.stack([X[:8].reshape(-1, 32) * s for s in (1.0, 2.0, 0.5)])
    params = models.init(model, x)
    config = Config(
        transform="auto", candidates=("wush", "identity"), gauges=1, sample_tokens=64, refine=0
    )
    q, report = wush_jax.quantize(params, [x], model=model, config=config, return_report=True)
    chosen = {row.path.split("[")[0]: row.transform for row in report.layers}
    for path, kernel in trees.quantized_kernels(q).items():
        assert kernel.transform_name == chosen[path]
    for row in report.layers:
        assert row.candidates[row.transform] == min(row.candidates.values())


def test_a_padded_k():
    """K = 48 in groups of 32: padded features carry no weight and no error."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(256, 48)).astype(np.float32) @ rng.normal(size=(48, 48)).astype("f")
    params = {"layer": {"kernel": rng.normal(size=(48, 40)).astype(np.float32)}}
    q = {}
    for solver in ("rtn", "gptq"):
        config = Config(transform="hadamard", solver=solver, refine=0, pad=True)
        q[solver], report = wush_jax.quantize(
            params, [{"layer": x}], config=config, return_report=True
        )
        assert report.layers[0].shape == (48, 40)
    exact = x @ params["layer"]["kernel"]
    error = {
        name: np.linalg.norm(x @ wush_jax.dequantize(tree)["layer"]["kernel"] - exact)
        for name, tree in q.items()
    }
    assert error["gptq"] < 0.8 * error["rtn"]


def test_moments_too_narrow_for_gptq_are_refused():
    x = np.asarray(X.reshape(-1, 32))
    params = {"layer": {"kernel": np.eye(32, 64, dtype=np.float32)}}
    narrow = wush_jax.calibrate(
        params, [{"layer": x}], config=Config(transform_block=16, format="nvfp4"), full=False
    )
    with pytest.raises(ValueError, match="full=True"):
        wush_jax.quantize(params, narrow, config=Config(format="nvfp4", solver="gptq"))
