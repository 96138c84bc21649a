"""Codes and scales against float64: a NumPy reference, and golden arrays of the paper's code."""

from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.support import formats_reference as reference
from tests.support.formats_reference import quantize

GOLDEN = Path(__file__).parents[3] / "shared" / "golden"
LAYERS = ("attention_query", "mlp_up", "mlp_down")


def unpacked(q):
    """(grid values, group scales) of a Quantized, float64, from its stored bits."""
    values = np.asarray(reference.codes_to_values(q.codes, q.format), np.float64)
    scales = np.asarray(reference.scales_to_values(q.scales, q.format))
    return values, scales.astype(np.float64)


def assert_nearest(units, values, grid, slack=2.0**-21):
    """Every value is the nearest of the grid to its unit, up to float32's rounding of the unit."""
    units, values = np.clip(units.ravel(), grid[0], grid[-1]), values.ravel()
    assert np.isin(values, grid).all()
    best = np.abs(units[:, None] - grid).min(-1)
    worse = np.abs(units - values) - best
    assert (worse <= slack * np.abs(units) + 1e-30).all(), worse.max()


def assert_close_codes(values, expected, grid):
    """At most 1e-4 of the values differ, by one step of the grid."""
    differ = values != expected
    assert differ.mean() <= 1e-4, differ.mean()
    steps = np.searchsorted(grid, values[differ]) - np.searchsorted(grid, expected[differ])
    assert (np.abs(steps) == 1).all()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("spec", reference.ALL)
def test_matches_the_float64_reference(spec, dtype):
    rng = np.random.default_rng(1)
    x = (rng.standard_t(4, size=(256, 512)) * np.exp2(rng.integers(-4, 4, (256, 1)))).astype(dtype)
    ref = reference.exact(x, spec)
    q = quantize(jnp.asarray(x), spec)
    values, scales = unpacked(q)
    assert float(q.global_scale) == pytest.approx(ref.global_scale, rel=1e-7)
    if spec in ("int4/wush", "nvfp4/nvidia"):  # the statistic is itself rounded to float32
        assert (scales != ref.scales).mean() <= 1e-3
        same = np.repeat((scales == ref.scales).ravel(), reference.group_size(spec))
    else:
        np.testing.assert_array_equal(scales, ref.scales)
        same = np.ones(x.size, bool)
    grid = reference.grid(spec)
    assert_nearest(ref.units.ravel()[same], values.ravel()[same], grid)
    if dtype == np.float32:
        assert_close_codes(values.ravel()[same], ref.values.ravel()[same], grid)
    if spec in ("mxfp4/ocp", "mxfp4/ceil"):  # no rounding before the grid: ties and all
        np.testing.assert_array_equal(values, ref.values)


@pytest.mark.parametrize("spec", reference.ALL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_finite_group_is_rounded_to_nearest(spec, data):
    """Any float32 bits: subnormals, zeros of both signs, the largest numbers, all in one group."""
    elements = st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True)
    scale = data.draw(st.sampled_from([None, 1e-42, 1e-38, 1e-3, 1.0, 3e38]))
    if scale is not None:
        elements = st.floats(-1, 1, width=32).map(lambda v: np.float32(v * scale))
    x = data.draw(hnp.arrays(np.float32, (32,), elements=elements))
    ref = reference.exact(x, spec)
    q = quantize(x, spec)
    values, scales = unpacked(q)
    assert float(q.global_scale) == pytest.approx(ref.global_scale, rel=1e-6)
    if spec in ("int4/wush", "nvfp4/nvidia"):
        np.testing.assert_allclose(scales, ref.scales, rtol=0.13, atol=2.0**-9)
        same = np.repeat(scales == ref.scales, reference.group_size(spec))
    else:
        np.testing.assert_array_equal(scales, ref.scales)
        same = np.ones(x.size, bool)
    zero = np.repeat(ref.scales == 0, reference.group_size(spec))  # int4/wush decodes it to 1/2
    expected_grid = reference.grid(spec)
    slack = 2.0**-19 if spec == "nvfp4/nvidia" else 2.0**-21
    assert_nearest(ref.units[same & ~zero], values[same & ~zero], expected_grid, slack)
    back = np.asarray(reference.dequantize(q))
    assert (back[zero] == 0).all()


@pytest.mark.parametrize("which", ["weight", "act"])
@pytest.mark.parametrize("name", ["mxfp4", "nvfp4"])
@pytest.mark.parametrize("layer", LAYERS)
def test_golden(layer, name, which):
    path = GOLDEN / f"{layer}.npz"
    if not path.exists():
        pytest.skip(f"no golden arrays at {path}")
    with np.load(path) as arrays:
        x = arrays[f"{name}_{which}_transformed"].astype(np.float32)
        codes, scales = arrays[f"{name}_{which}_codes"], arrays[f"{name}_{which}_scales"]
    q = quantize(x, name)
    np.testing.assert_array_equal(q.scales, scales)
    low_high = np.stack([codes & 15, codes >> 4], -1).reshape(x.shape)
    expected = np.where(low_high > 8, -1.0, 1.0) * reference.E2M1[low_high & 7]
    values, _ = unpacked(q)
    assert_close_codes(values, expected, reference.grid(name))
    assert np.unique(expected).size == 15
