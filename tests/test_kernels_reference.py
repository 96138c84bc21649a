"""The XLA references of the GPU kernels: exact, and the same numbers as `wush_jax`."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from wush_kernels.expand import expand, exponent_window
from wush_kernels.expand import reference as expand_reference
from wush_kernels.quantized_matmul import reference as matmul_reference
from wush_kernels.transform_quantize import transform_quantize_folded
from wush_kernels.wush_linear.api import two_factors

from wush_jax import formats

GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
CODES = np.array([c for c in range(16) if c != 8], np.uint8)


def test_table_holds_every_e4m3_value():
    table = expand_reference.table().view(np.uint8).reshape(64, 8)
    for exponent in range(-8, 7):
        values = table[exponent + 31].view(ml_dtypes.float8_e4m3fn).astype(np.float32)
        np.testing.assert_array_equal(values, GRID * 2.0**exponent)
    assert np.all(table[-1] == 0x7F)
    assert np.all(table[0] == 0)
    assert table[-2].view(ml_dtypes.float8_e4m3fn).astype(np.float32)[-1] == 448


def test_expand_is_exact_in_its_window():
    codes = np.resize(CODES, (15, 32))
    packed = jnp.asarray(codes[:, ::2] | (codes[:, 1::2] << 4))
    scales = jnp.asarray(np.arange(-8, 7)[:, None] + 127 - 3, jnp.uint8)
    y = expand(packed, scales, 3, implementation="xla")
    values = formats.codes_to_values(packed, "mxfp4") * 2.0 ** np.arange(-8, 7)[:, None]
    np.testing.assert_array_equal(np.asarray(y, np.float32), np.asarray(values))
    assert y.dtype == jnp.float8_e4m3fn
    nan = expand(packed, jnp.full_like(scales, 255), 3, implementation="xla")
    assert np.isnan(np.asarray(nan, np.float32)).all()


@pytest.mark.parametrize(("low", "fits"), [(100, True), (99, False)])
def test_exponent_window(low, fits):
    codes = np.full((1, 48), 0x11, np.uint8)
    codes[0, 32:] = 0  # a zero group does not count
    scales = np.array([[114, low, 3]], np.uint8)
    offset, ok = jax.jit(exponent_window)(jnp.asarray(scales), jnp.asarray(codes))
    assert int(offset) == 6 - (114 - 127)
    assert bool(ok) == fits


def test_exponent_window_of_zeros_and_nan():
    codes = jnp.zeros((2, 16), jnp.uint8)
    offset, ok = exponent_window(jnp.full((2, 1), 7, jnp.uint8), codes)
    assert (int(offset), bool(ok)) == (0, True)
    assert not exponent_window(jnp.full((2, 1), 255, jnp.uint8), codes)[1]


def test_matmul_reference_is_the_product_of_values():
    keys = jax.random.split(jax.random.key(1), 2)
    x, w = (jax.random.normal(k, (n, 64)) for k, n in zip(keys, (3, 8), strict=True))
    qw = formats.quantize(w, "mxfp4")
    a = transform_quantize_folded(x, None, 1, implementation="xla")
    factor = 2.0**-5 / 9
    y = matmul_reference.matmul(a, qw.codes, qw.scales, 4, factor, jnp.float32)
    expected = (
        np.asarray(formats.fake_quantize(x, "mxfp4"), np.float64)
        @ np.asarray(formats.fake_quantize(w, "mxfp4"), np.float64).T
    )
    np.testing.assert_allclose(np.asarray(y), expected, rtol=1e-5, atol=1e-6)


def test_two_factors():
    for value in (1 / 9, 1 / 3, 1.0, 0.777):
        first, second = two_factors(jnp.float32(value))
        assert abs(float(first) * float(second) / value - 1) < 1e-4
        assert float(first) == float(first.astype(jnp.bfloat16))
        assert float(second) == float(second.astype(jnp.bfloat16))


def test_wrong_shapes_are_value_errors():
    with pytest.raises(ValueError, match="take scales"):
        expand(jnp.zeros((2, 16), jnp.uint8), jnp.zeros((2, 2), jnp.uint8), 0)
