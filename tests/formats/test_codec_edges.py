"""Groups of zeros, bad values, subnormals and huge numbers; given global scales."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests.support import formats_reference as reference
from tests.support.formats_reference import dequantize, quantize
from tests.support.formats_reference import fake_quantize as fake
from wush_jax import formats

ALL = reference.ALL
MAX = float(np.finfo(np.float32).max)


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.mark.parametrize(
    ("amax", "wush", "ocp", "ceil"),
    [
        (0.0, 0, 0, 0),
        (2.0**-149, 0, 0, 0),
        (2.0**-127, 0, 0, 0),
        (2.0**-126, 1, 0, 0),
        (1.0, 127, 125, 125),
        (float(np.nextafter(np.float32(1), np.float32(0))), 126, 124, 125),
        (1.5, 127, 125, 125),
        (float(np.nextafter(np.float32(1.5), np.float32(2))), 127, 125, 126),
        (6.0, 129, 127, 127),
        (2.0**127, 254, 252, 252),
        (MAX, 254, 252, 253),
        (np.inf, 255, 255, 255),
        (np.nan, 255, 255, 255),
    ],
)
def test_e8m0_byte_of_a_group(amax, wush, ocp, ceil):
    x = np.zeros(32, np.float32)
    x[5] = -amax
    found = [int(quantize(x, f"mxfp4/{rule}").scales[0]) for rule in ("wush", "ocp", "ceil")]
    assert found == [wush, ocp, ceil]


@pytest.mark.parametrize("spec", ALL)
def test_zero_groups(spec):
    x = np.zeros((2, 64), np.float32)
    x[1, :32] = np.linspace(-1, 1, 32)
    x[0, 3] = -0.0
    q = quantize(x, spec)
    assert not np.asarray(q.codes)[0].any()
    assert not np.asarray(q.scales, np.float32)[0].any()
    for result in (dequantize(q), fake(x, spec)):
        assert (np.asarray(result)[0] == 0).all()
        assert not np.signbit(result)[0].any()
        assert np.asarray(result)[1].any()
    if spec == "nvfp4/nvidia":
        assert reference.data_global_scale(np.zeros(4, np.float32), spec) == 1
        assert quantize(np.zeros(32, np.float32), spec).global_scale == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spec", ALL)
def test_a_bad_value_spoils_its_group_only(spec, dtype, bad):
    x = jax.random.normal(jax.random.key(0), (4, 128), jnp.float32).astype(dtype)
    x = x.at[2, 64].set(0)  # the bad position below is not the tensor's amax
    spoilt = x.at[2, 64].set(bad)
    size = formats.get_format(spec).group_size
    hit = np.zeros((4, 128), bool)
    hit[2, 64 : 64 + size] = True
    q, clean = quantize(spoilt, spec), quantize(x, spec)
    assert np.isnan(np.asarray(reference.scales_to_values(q.scales, spec))[2, 64 // size])
    assert not np.asarray(reference.codes_to_values(q.codes, spec) - (spec == "int4/wush") / 2)[
        hit
    ].any()
    values, _ = reference.quantized_values(spoilt, spec)
    for result in (dequantize(q, dtype), fake(spoilt, spec), values.astype(dtype)):
        np.testing.assert_array_equal(np.isnan(np.asarray(result, np.float32)), hit)
    expected = np.asarray(dequantize(clean, dtype), np.float32)
    if (
        spec != "nvfp4/nvidia"
        or np.abs(np.asarray(x, np.float32))[~hit].max() == np.abs(np.asarray(x, np.float32)).max()
    ):
        np.testing.assert_array_equal(
            np.asarray(fake(spoilt, spec), np.float32)[~hit], expected[~hit]
        )


@pytest.mark.parametrize("spec", ALL)
def test_subnormal_and_huge_inputs(spec):
    """Codes of the smallest and of the largest numbers are those of float64."""
    rng = np.random.default_rng(3)
    mantissas = rng.integers(0, 1 << 23, (6, 64)).astype(np.uint32)
    mantissas[1] >>= 12
    mantissas[2] = 0
    mantissas[2, 0] = 1  # the smallest subnormal, alone
    subnormal = (mantissas | (rng.integers(0, 2, (6, 64)).astype(np.uint32) << 31)).view(np.float32)
    subnormal[3, 5] = 2.0**-126
    bf16 = rng.integers(0, 128, (2, 64)).astype(np.uint16).view(ml_dtypes.bfloat16)
    huge = (rng.uniform(-1, 1, (2, 64)) * MAX).astype(np.float32)
    huge[0, 0], huge[1, 40] = MAX, -MAX
    for x in (subnormal, bf16, huge):
        q = quantize(x, spec)
        ref = reference.exact(x, spec)
        assert float(q.global_scale) == pytest.approx(ref.global_scale, rel=1e-6)
        stored = np.asarray(reference.scales_to_values(q.scales, spec)).astype(np.float64)
        np.testing.assert_array_equal(stored, ref.scales)
        values = np.asarray(reference.codes_to_values(q.codes, spec), np.float64)
        live = np.repeat(ref.scales != 0, reference.group_size(spec), -1)
        assert (values[live] != ref.values[live]).mean() < 0.01 if live.any() else True
        exact = ref.values * np.repeat(ref.scales, reference.group_size(spec), -1)
        exact = exact * ref.global_scale
        np.testing.assert_array_equal(fake(x, spec), dequantize(q, x.dtype))
        back = np.asarray(dequantize(q), np.float64)
        inside = (np.abs(exact) >= 2.0**-126) & (np.abs(exact) < MAX) & (values == ref.values)
        np.testing.assert_allclose(back[inside], exact[inside], rtol=3e-7)
        assert (np.abs(back[np.abs(exact) < 2.0**-127]) <= 2.0**-126).all()


@pytest.mark.parametrize("power", [-132, -126, -110, -60, 60, 110, 126])
def test_nvidia_rule_follows_the_data(power):
    x = np.random.default_rng(0).normal(size=(16, 128))
    x = np.ldexp(x / np.abs(x).max(), power).astype(np.float32)
    q = quantize(x, "nvfp4/nvidia")
    assert np.asarray(q.codes).any()
    largest = int(np.asarray(q.scales).max())
    assert largest == 126 if power > -110 else largest > 0
    if power > -110:  # below that the results are subnormal
        error = np.asarray(dequantize(q), np.float64) - x
        assert np.linalg.norm(error) < 0.1 * np.linalg.norm(x.astype(np.float64))


@pytest.mark.parametrize("spec", ALL)
def test_given_global_scale(spec):
    """The default's own value changes no bit; a row-wise one acts as row-wise scalars."""
    x = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    default = quantize(x, spec)
    same = quantize(x, spec, global_scale=default.global_scale)
    jax.tree.map(np.testing.assert_array_equal, same, default)
    rows = np.array([[0.02], [0.3], [1.0], [8.0]], np.float32)
    q = quantize(x, spec, global_scale=rows)
    parts = [quantize(x[i], spec, global_scale=rows[i, 0]) for i in range(4)]
    np.testing.assert_array_equal(q.codes, np.stack([p.codes for p in parts]))
    np.testing.assert_array_equal(dequantize(q), np.stack([dequantize(p) for p in parts]))
    doubled = quantize(x, spec, global_scale=2 * default.global_scale)
    half = quantize(x / 2, spec, global_scale=default.global_scale)
    np.testing.assert_array_equal(doubled.codes, half.codes)
