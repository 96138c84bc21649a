"""The kernels on a GPU against their references: `pytest -m gpu tests/test_kernels_gpu.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wush_kernels import _triton
from wush_kernels.expand import expand, exponent_window
from wush_kernels.quantized_matmul import decode_matmul, fp8_matmul
from wush_kernels.quantized_matmul import reference as matmul_reference
from wush_kernels.transform_quantize import reference, transform_quantize_folded

from wush_jax import formats

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="no CUDA GPU"),
    pytest.mark.skipif(
        _triton.reason_unavailable() is not None, reason=str(_triton.reason_unavailable())
    ),
]


def poison():
    """Fills freed memory with NaN bytes, so that an element nobody writes shows."""
    jax.block_until_ready([jnp.full(1 << 24, 0xFF, jnp.uint8) for _ in range(4)])


def data(M, K, D, dtype=jnp.bfloat16):
    keys = jax.random.split(jax.random.key(M * K + D), 2)
    x = jax.random.normal(keys[0], (M, K)) * jnp.exp2(jnp.arange(M) % 7)[:, None]
    t = jax.random.normal(keys[1], (K // D, D, D)) * D**-0.5
    return x.astype(dtype), t.astype(jnp.bfloat16)


def frobenius(y, expected):
    y, expected = (np.asarray(v.astype(jnp.float32), np.float64) for v in (y, expected))
    return np.linalg.norm(y - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize(("N", "K"), [(8, 32), (1000, 1024), (4096, 96)])
def test_expand(N, K):
    q = formats.quantize(jax.random.normal(jax.random.key(N), (N, K)) * 0.02, "mxfp4")
    offset, _ = exponent_window(q.scales, q.codes)
    poison()
    got = jax.jit(expand)(q.codes, q.scales, offset)
    want = expand(q.codes, q.scales, offset, implementation="xla")
    np.testing.assert_array_equal(np.asarray(got, np.float32), np.asarray(want, np.float32))


@pytest.mark.parametrize(("N", "K"), [(8, 64), (1000, 1056), (4096, 4096)])
@pytest.mark.parametrize("M", [1, 3, 17, 64, 100])
def test_decode(M, N, K):
    x, _ = data(M, K, 32)
    q = formats.quantize(jax.random.normal(jax.random.key(N), (N, K)) * 0.02, "mxfp4")
    offset, _ = exponent_window(q.scales, q.codes)
    a = transform_quantize_folded(x, None, -6, dtype=jnp.float16, implementation="xla")
    want = matmul_reference.matmul(a, q.codes, q.scales, offset, 0.25, jnp.float32)
    poison()
    run = jax.jit(lambda *v: decode_matmul(*v, 0.25, dtype=jnp.float32))
    got = run(reference.interleave(a, 8), q.codes, q.scales, offset)
    assert frobenius(got, want) <= 1e-4


@pytest.mark.parametrize("precise", [False, True])
def test_fp8_product(precise):
    x, _ = data(256, 4096, 32)
    q = formats.quantize(jax.random.normal(jax.random.key(1), (512, 4096)) * 0.02, "mxfp4")
    offset, fits = exponent_window(q.scales, q.codes)
    assert bool(fits)
    a = transform_quantize_folded(x, None, -6)
    want = matmul_reference.matmul(a, q.codes, q.scales, offset, 0.25, jnp.float32)
    b = expand(q.codes, q.scales, offset)
    y = jax.jit(lambda a, b: fp8_matmul(a, b, 0.25, precise=precise))(a, b)
    assert frobenius(y, want) <= 2e-3
