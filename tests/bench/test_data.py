"""The synthetic layers that benchmarks run, how their error is seen, and the peer's product."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.bench import data, programs, qwix_baseline
from tests.support.distance import frobenius

run = jax.jit(programs.linear)


@pytest.fixture(scope="module")
def layer():
    return programs.Layer(256, 96, 64)


def test_synthetic_kernels_are_layers_like_any_other(layer):
    kernel = layer.kernel
    assert (kernel.features, kernel.outputs, kernel.block) == (256, 96, 64)
    assert kernel.transform is not None
    t = np.asarray(kernel.transform, np.float64)
    gram = t @ t.swapaxes(1, 2)
    sizes = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    assert 0.7 < sizes.min() < 0.8 < 1.3 < sizes.max() < 1.42  # up to half an octave
    cosines = gram / (sizes[:, :, None] * sizes[:, None, :])
    assert np.abs(cosines - np.eye(64)).max() < 2e-2
    assert len(np.unique(t[:, 0], axis=0)) == 4  # every block has its own
    assert len(np.unique(np.asarray(kernel.codes))) > 200
    x = layer.inputs(64)
    y = np.asarray(run(x, kernel), np.float64)
    dense = jax.jit(lambda kernel: kernel.dequantize())(kernel)
    assert 0.02 < frobenius(y, np.asarray(x, float) @ np.asarray(dense, float)) < 0.2
    part, stride = data.some_outputs(kernel, 40)
    assert stride == 3
    assert frobenius(run(x, part), y[:, ::3]) < 1e-6


def test_copies_are_as_many_as_are_cold_and_lie_elsewhere():
    tree = {"w": jnp.ones((64, 4), jnp.bfloat16)}  # 512 bytes
    made = data.copies(tree, 1500)
    assert len(made) == 3
    assert len({leaf["w"].unsafe_buffer_pointer() for leaf in made}) == 3
    assert len(data.copies(tree, 0)) == 1
    assert data.nbytes(jax.ShapeDtypeStruct((8, 4), jnp.float4_e2m1fn)) == 16


@pytest.mark.parametrize("M", [1, 100])
def test_the_error_sees_wrong_outputs_rows_and_nan(layer, M):
    x = layer.inputs(M)
    y = np.array(run(x, layer.kernel))
    assert layer.error(x, y) == 0
    assert layer.error(x, np.roll(y, 1, axis=1)) > 0.5
    assert M == 1 or layer.error(x, np.roll(y, 1, axis=0)) > 0.5
    y[-1, 0] = np.nan
    assert np.isnan(layer.error(x, y))
    assert layer.weight_bits() == 4.25


def test_qwix_is_the_same_product_or_says_what_to_install():
    x, w = (data.tokens(jax.random.key(i), n, 128) for i, n in ((0, 16), (1, 24)))
    if importlib.util.find_spec("qwix") is None:
        with pytest.raises(NotImplementedError, match="pip install qwix"):
            qwix_baseline.quantize(w)
        return
    weights = qwix_baseline.quantize(w)
    y = qwix_baseline.linear(x, weights)
    assert y.dtype == jnp.bfloat16
    assert 0.02 < frobenius(y, x.astype(jnp.float32) @ w.astype(jnp.float32).T) < 0.3
    assert frobenius(qwix_baseline.linear_dequantized(x, weights), y) < 5e-3
