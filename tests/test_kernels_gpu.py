"""The kernels on a GPU against their references: `pytest -m gpu tests/test_kernels_gpu.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from wush_kernels import _triton
from wush_kernels.expand import expand, exponent_window
from wush_kernels.quantized_matmul import decode_matmul, fp8_matmul
from wush_kernels.quantized_matmul import reference as matmul_reference
from wush_kernels.transform_quantize import (
    reference,
    transform_quantize_codes,
    transform_quantize_folded,
)

from wush_jax import formats

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="no CUDA GPU"),
    pytest.mark.skipif(
        _triton.reason_unavailable() is not None, reason=str(_triton.reason_unavailable())
    ),
]
TOKENS = (1, 3, 17, 1000, 4096)


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


@pytest.mark.parametrize("D", [16, 32, 64, 128])
@pytest.mark.parametrize("M", TOKENS)
def test_transform_quantize(M, D):
    x, t = data(M, 640, D)
    codes, scales = jax.jit(reference.codes)(jax.jit(reference.rotate)(x, t))
    poison()
    got = jax.jit(transform_quantize_codes)(x, t)
    assert np.mean(np.asarray(formats.unpack(got[0])) != np.asarray(formats.unpack(codes))) <= 1e-4
    assert np.mean(np.asarray(got[1]) != np.asarray(scales)) <= 1e-4
    folded = jax.jit(lambda x, t: transform_quantize_folded(x, t, -3))(x, t)
    expected = jax.jit(lambda x, t: reference.folded(reference.rotate(x, t), -3))(x, t)
    assert np.mean(np.asarray(folded) != np.asarray(expected)) <= 1e-4


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("block", [None, 32, 128])
def test_transforms_and_dtypes(block, dtype):
    x, _ = data(100, 512, 32, dtype)
    want = jax.jit(lambda x: reference.codes(reference.rotate(x, None, block)))(x)
    got = jax.jit(lambda x: transform_quantize_codes(x, None, hadamard_block=block))(x)
    assert np.mean(np.asarray(got[0]) != np.asarray(want[0])) <= (0 if block is None else 2e-4)


def test_nan_reaches_no_other_token():
    x, t = data(70, 256, 32)
    y = transform_quantize_folded(x.at[33, 5].set(jnp.nan).at[40, 200].set(jnp.inf), t)
    clean = transform_quantize_folded(x, t)
    bad = np.isnan(np.asarray(y, np.float32))
    assert bad[33, :32].all()
    assert bad[40, 192:224].all()
    others = np.setdiff1d(np.arange(70), [33, 40])
    np.testing.assert_array_equal(np.asarray(y)[others], np.asarray(clean)[others])


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
