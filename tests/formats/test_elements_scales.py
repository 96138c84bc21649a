"""Every code and scale byte of the grids and scale types, and every tie."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.support import formats_reference as reference
from wush_jax.formats import elements, scales

MAX = float(np.finfo(np.float32).max)


e2m1_round = jax.jit(elements.e2m1_round)
e2m1_encode = jax.jit(elements.e2m1_encode)
e2m1_decode = jax.jit(elements.e2m1_decode)
nibble_decode = jax.jit(elements.nibble_decode)
nibble_encode = jax.jit(elements.nibble_encode)
e4m3_decode = jax.jit(scales.e4m3_decode)
e4m3_from_float = jax.jit(scales.e4m3_from_float)
e8m0_decode = jax.jit(scales.e8m0_decode)
times_e8m0 = jax.jit(scales.times_e8m0)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def test_all_e2m1_codes():
    codes = jnp.arange(16, dtype=jnp.uint8)
    expected = np.concatenate([reference.E2M1, -reference.E2M1])
    values = e2m1_decode(codes)
    np.testing.assert_array_equal(values, expected)
    assert not np.signbit(values[8])
    np.testing.assert_array_equal(e2m1_encode(values), np.where(codes == 8, 0, codes))
    np.testing.assert_array_equal(e2m1_encode(-0.0 * values), np.zeros(16))


def test_every_e2m1_tie_and_its_sides():
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
    even = np.array([0, 1, 1, 2, 2, 4, 4], np.float32)
    for sign in (1, -1):
        np.testing.assert_array_equal(e2m1_round(sign * ties), sign * even)
        down = e2m1_round(sign * np.nextafter(ties, np.float32(0)))
        np.testing.assert_array_equal(down, sign * reference.E2M1[:7])
        up = e2m1_round(sign * np.nextafter(ties, np.float32(9)))
        np.testing.assert_array_equal(up, sign * reference.E2M1[1:])
        beyond = np.array([6, 6.1, 8, 1e30, np.inf], np.float32)
        np.testing.assert_array_equal(e2m1_round(sign * beyond), sign * np.full(5, 6))
    small = e2m1_round(np.array([-0.25, -0.0, -1e-40], np.float32))
    assert not np.signbit(small).any()


@pytest.mark.parametrize("name", ["midrise", "midtread", "int8"])
def test_integer_grids(name):
    rounded, encode, decode = (jax.jit(f) for f in elements.GRIDS[name])
    table = {"midrise": "int4/wush", "midtread": "int4/absmax", "int8": "int8/absmax"}[name]
    values = reference.grid(table).astype(np.float32)
    np.testing.assert_array_equal(rounded(values), values)
    np.testing.assert_array_equal(decode(encode(values)), values)
    assert np.unique(encode(values)).size == values.size
    middles = (values[1:] + values[:-1]) / 2
    up = rounded(np.nextafter(middles, np.float32(999)))
    np.testing.assert_array_equal(up, values[1:])
    down = rounded(np.nextafter(middles, np.float32(-999)))
    distinct = middles != 0  # next to 0 lies a subnormal, which XLA may read as 0
    np.testing.assert_array_equal(down[distinct], values[:-1][distinct])
    tie = values[1:] if name == "midrise" else 2 * np.round(middles / 2)
    np.testing.assert_array_equal(rounded(middles), tie)
    np.testing.assert_array_equal(
        rounded(np.array([-1e9, 1e9], np.float32)), values[np.array([0, -1])]
    )


def test_two_complement_nibbles():
    q = np.arange(-8, 8)
    np.testing.assert_array_equal(nibble_decode(np.uint8(q % 16)), q)
    np.testing.assert_array_equal(nibble_encode(np.float32(q)), q % 16)


def test_all_e8m0_bytes():
    values = np.asarray(e8m0_decode(jnp.arange(256, dtype=jnp.uint8)))
    np.testing.assert_array_equal(values[:255].astype(np.float64), 2.0 ** np.arange(-127.0, 128))
    assert np.isnan(values[255])
    product = times_e8m0(jnp.full(256, 4.0), jnp.arange(256, dtype=jnp.uint8))
    expected = 4 * 2.0 ** np.arange(-127.0, 126)
    np.testing.assert_array_equal(np.asarray(product, np.float64)[:253], expected)
    assert np.isnan(product[255])


def test_all_e4m3_bytes():
    stored = np.arange(256, dtype=np.uint8)
    expected = stored.view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(e4m3_decode(stored), expected)
    np.testing.assert_array_equal(expected[:127], reference.E4M3)
    np.testing.assert_array_equal(e4m3_from_float(expected[:128]), stored[:128])


def test_e4m3_rounding_ties_and_saturation():
    table = reference.E4M3.astype(np.float32)
    middle = (table[1:] + table[:-1]) / 2
    even = np.where(np.arange(126) % 2 == 0, np.arange(126), np.arange(1, 127))
    np.testing.assert_array_equal(e4m3_from_float(middle), even)
    below, above = np.nextafter(middle, np.float32(0)), np.nextafter(middle, np.float32(999))
    np.testing.assert_array_equal(e4m3_from_float(below), np.arange(126))
    np.testing.assert_array_equal(e4m3_from_float(above), np.arange(1, 127))
    beyond = np.array([448, 464, 465, 480, 1e30, np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(e4m3_from_float(beyond), [126] * 6 + [127])


def test_scale_by_power_of_two():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 1 << 32, 20000, np.uint64).astype(np.uint32).view(np.float32)
    x = np.where(np.isfinite(x), x, 0).astype(np.float32)
    x[:200] = np.arange(200, dtype=np.uint32).view(np.float32)  # the smallest subnormals
    n = rng.integers(-254, 255, x.size).astype(np.int32)
    exact = np.ldexp(x.astype(np.float64), n)
    normal = (np.abs(exact) >= 2.0**-126) & (np.abs(exact) <= MAX)
    result = np.asarray(jax.jit(scales.scale_by_power_of_two)(x, n), np.float64)
    assert normal.sum() > 1000
    np.testing.assert_array_equal(result[normal], exact[normal])
    small = np.abs(exact) < 2.0**-126
    assert (np.abs(result[small]) <= 2.0**-126).all()
    assert np.isinf(result[np.abs(exact) > MAX]).all()


@pytest.mark.parametrize("constant", [6.0, 7.0, 127.0, 2688.0])
def test_quotient_is_correctly_rounded(constant):
    x = np.random.default_rng(0).normal(size=4096).astype(np.float32)
    divided = np.asarray(jax.jit(lambda x: scales.quotient(x, constant))(x))
    units = 0 if jax.default_backend() == "cpu" else 1  # XLA's GPU division is not IEEE's
    np.testing.assert_array_max_ulp(divided, x / np.float32(constant), units)
