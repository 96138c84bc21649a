"""Every way of composing Flax modules: captured, quantized, run, and dequantized rightly.

INT8 keeps a rightly wired layer within about 1 % of the float model, far from any miswiring.
"""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import flax_models as models
from wush_jax.layers import trees
from wush_jax.layers.quantized_kernel import QuantizedKernel

CONFIG = wush_jax.Config(format="int8", gauges=1, sample_tokens=32)
KEY = jax.random.key(0)
TOKENS = jax.random.randint(KEY, (4, 16), 0, 50)
X = jax.random.normal(KEY, (4, 16, 32))
PER_MEMBER = jax.random.normal(KEY, (3, 16, 32))

CASES = {
    "unrolled": (models.Unrolled(layers=1), TOKENS, 6),
    "scan": (models.Scanned(), TOKENS, 6),
    "scan_axis_1": (models.Scanned(axis=1), TOKENS, 6),
    "scan_axis_last": (models.Scanned(axis=-1), TOKENS, 6),
    "scan_remat": (models.Scanned(remat=True), TOKENS, 6),
    "vmap_same_input": (models.Ensemble(), X, 2),
    "vmap_own_input": (models.Ensemble(in_axes=0), PER_MEMBER, 2),
    "experts": (models.Experts(), PER_MEMBER, 2),
    "shared_module": (models.Shared(), X, 2),
    "batch_stats": (models.Normed(), X, 1),
    "jit": (models.Jitted(), X, 2),
    "attention": (nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=32), X, 4),
    "root_dense": (nn.Dense(32), X, 1),
}


apply = jax.jit(wush_jax.apply, static_argnums=0)
dequantize = jax.jit(wush_jax.dequantize)


@functools.partial(jax.jit, static_argnums=0)
def exactly(model: nn.Module, variables: Any, x: Any) -> Any:
    return model.apply(variables, x)


def _relative(a: Any, b: Any) -> float:
    a, b = (np.asarray(y, np.float64) for y in (a, b))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("name", CASES)
def test_model_runs_quantized(name):
    model, x, layers = CASES[name]
    variables = models.init(model, x)
    exact = exactly(model, variables, x)
    quantized, report = wush_jax.quantize(
        variables, [x], model=model, config=CONFIG, return_report=True
    )
    kernels = trees.quantized_kernels(quantized)
    assert len(kernels) == layers
    float_shapes = {p: k.shape for p, k in trees.flax_weights(variables["params"]).items()}
    assert all(kernel.shape == float_shapes[path] for path, kernel in kernels.items())
    assert all(row.error < 1e-3 for row in report.layers)

    answer = apply(model, quantized, x)
    assert 0 < _relative(answer, exact) < 0.03
    restored = exactly(model, dequantize(quantized), x)
    assert 0 < _relative(restored, exact) < 0.03

    abstract = wush_jax.abstract_quantize(variables, [x], model=model, config=CONFIG)
    assert jax.tree.structure(abstract) == jax.tree.structure(quantized)
    assert [(a.shape, a.dtype) for a in jax.tree.leaves(abstract)] == [
        (a.shape, a.dtype) for a in jax.tree.leaves(quantized)
    ]


def test_scan_equals_unrolled():
    """The same weights, stacked or not, give the same codes and the same answer.

    With Hadamard: a fitted U may turn within a pair of near-equal singular values.
    """
    config = wush_jax.Config(format="int8", transform="hadamard", sample_tokens=32)
    scanned, unrolled = models.Scanned(layers=2), models.Unrolled(layers=2)
    stacked = models.init(scanned, TOKENS)["params"]
    flat = {k: v for k, v in stacked.items() if k != "blocks"}
    for i in range(2):
        flat[f"block_{i}"] = jax.tree.map(lambda leaf, i=i: leaf[i], stacked["blocks"])
    qs = wush_jax.quantize(stacked, [TOKENS], model=scanned, config=config)
    qf = wush_jax.quantize(flat, [TOKENS], model=unrolled, config=config)
    for path in ("mlp/up", "attention/query", "attention/out"):
        first, second = path.split("/")
        codes = qs["blocks"][first][second]["kernel"].codes
        for i in range(2):
            alone = qf[f"block_{i}"][first][second]["kernel"].codes
            np.testing.assert_array_equal(codes[i], alone)
    a, b = apply(scanned, qs, TOKENS), apply(unrolled, qf, TOKENS)
    assert _relative(a, b) < 1e-3  # a sum in another order may flip an activation's rounding


def test_shared_input_shares_the_transform():
    model = models.Unrolled(layers=1)
    params = models.init(model, TOKENS)["params"]
    q = wush_jax.quantize(params, [TOKENS], model=model, config=CONFIG)["block_0"]["attention"]
    query, key, out = (q[name]["kernel"] for name in ("query", "key", "out"))
    assert query.shared_input == key.shared_input == "block_0/attention/query"
    assert out.shared_input is None
    np.testing.assert_array_equal(query.transform, key.transform)

    alone = wush_jax.Config(format="int8", gauges=1, sample_tokens=32, share_inputs=False)
    q = wush_jax.quantize(params, [TOKENS], model=model, config=alone)["block_0"]["attention"]
    assert q["query"]["kernel"].shared_input is None
    assert not np.array_equal(q["query"]["kernel"].transform, q["key"]["kernel"].transform)


def test_shared_input_is_encoded_once():
    """Query, key and value quantize their common input once, not three times."""
    model = models.Attention()
    params = models.init(model, X)["params"]
    q = wush_jax.quantize(params, [X], model=model, config=CONFIG)

    def rounds(tree):
        text = str(jax.make_jaxpr(lambda t, x: wush_jax.apply(model, t, x))(tree, X))
        return text.count("name=_straight_through")

    assert rounds(q) == 2  # the common input, and the output projection's


def test_module_called_twice_sums_over_both_calls():
    model = models.Shared()
    params = models.init(model, X)["params"]
    _, report = wush_jax.quantize(params, [X], model=model, config=CONFIG, return_report=True)
    tokens = {row.path: row.tokens for row in report.layers}
    assert tokens == {"twice": 2 * 64, "once": 64}


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dtypes_follow_flax(dtype):
    model = models.Mlp(dtype=dtype, param_dtype=jnp.bfloat16)
    params = models.init(model, X)["params"]
    q = wush_jax.quantize(params, [X], model=model, config=CONFIG)
    exact = exactly(model, {"params": params}, X)
    answer = apply(model, q, X)
    assert answer.dtype == exact.dtype == dtype
    assert _relative(answer, exact) < 0.03
    restored = dequantize(q)["up"]["kernel"]
    assert restored.dtype == jnp.bfloat16


@pytest.mark.parametrize("axis", [(-2, -1), (-1, -2)])
def test_contracted_axes_in_any_order(axis):
    """Flax sorts them; of equal sizes, a wrong order would go unnoticed but for the result."""
    model = nn.DenseGeneral(16, axis=axis, name="dense")
    x = jax.random.normal(KEY, (16, 8, 8)) * jnp.arange(1.0, 9.0)[None, None]
    params = models.init(model, x)["params"]
    q = wush_jax.quantize(params, [x], model=model, config=CONFIG)
    assert _relative(apply(model, q, x), exactly(model, {"params": params}, x)) < 0.03


def test_padding_an_odd_width():
    model = nn.Dense(8)
    x = jax.random.normal(KEY, (16, 40))
    params = models.init(model, x)["params"]
    config = wush_jax.Config(format="int8", gauges=1, sample_tokens=32, pad=True)
    q = wush_jax.quantize(params, [x], model=model, config=config)
    assert isinstance(q["kernel"], QuantizedKernel)
    assert q["kernel"].padded_features == 64
    assert _relative(apply(model, q, x), exactly(model, {"params": params}, x)) < 0.03
    assert dequantize(q)["kernel"].shape == (40, 8)


def test_weight_only():
    model = models.Mlp()
    params = models.init(model, X)["params"]
    config = wush_jax.Config(act_format=None, gauges=1, sample_tokens=32)
    q = wush_jax.quantize(params, [X], model=model, config=config)
    assert q["up"]["kernel"].act_format is None
    answer = apply(model, q, X)
    with jax.default_matmul_precision("highest"):
        restored = exactly(model, {"params": dequantize(q)}, X)
    assert _relative(answer, restored) < 1e-5  # nothing but the weights is rounded
