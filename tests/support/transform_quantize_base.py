"""What every implementation of `transform_quantize` must do."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.transform_quantize_data import (
    CASES,
    FORMATS,
    assert_same_codes,
    assert_same_values,
    every_exponent,
    exactly_quantized,
    quantized,
    random_case,
    tie_groups,
    values,
)
from wush_jax import formats
from wush_jax.transforms import hadamard
from wush_kernels.transform_quantize import (
    transform_quantize_codes,
    transform_quantize_folded,
    transform_quantize_values,
)

EIGHT_NINTHS = float(np.float32(1 / 3) / np.float32(3 / 8))
E5M2_MAX, F16_MAX = 57344.0, 65504.0


def scale_of(name):
    """The global scale to test a format with; None for the rule's own."""
    return 0.0077 if name == "nvfp4/nvidia" else None


class TransformQuantize:
    """An implementation is a subclass.

    Attributes:
      cases, formats, features: what to try; features is K.
      thorough: with several global scales.
      converts_to_e5m2: rounds to nearest even and saturates, as the hardware does.
      rounds_to_bfloat16: to nearest.
    """

    implementation = "triton"
    cases, formats = CASES, FORMATS
    features = 384
    thorough = True
    converts_to_e5m2 = True
    rounds_to_bfloat16 = True

    def run(self, function, x, t=None, global_scale=None, **options) -> Any:
        """The result in NumPy. A global scale that is an array stays one: read at run time."""
        self.poison()
        run = jax.jit(
            lambda x, t, g: function(x, t, **options, **g, implementation=self.implementation)
        )
        g = {} if global_scale is None else {"global_scale": global_scale}
        if isinstance(global_scale, float):
            options["global_scale"], g = global_scale, {}
        return jax.tree.map(np.asarray, run(x, t, g))

    def poison(self):
        """Makes sure that memory about to be written holds no zeros by chance."""

    def pytest_generate_tests(self, metafunc):
        if "case" in metafunc.fixturenames:
            names = [f"{M}-{D}-{jnp.dtype(dtype)}-{name}" for M, D, dtype, name in self.cases]
            metafunc.parametrize("case", self.cases, ids=names)
        if "format" in metafunc.fixturenames:
            metafunc.parametrize("format", self.formats)

    def test_codes(self, case):
        M, D, dtype, name = case
        x, t, rotated = random_case(M, self.features, D, dtype)
        g = scale_of(name)
        got = self.run(transform_quantize_codes, x, t, g, format=name)
        assert_same_codes(got, quantized(rotated, name, g))

    def test_values(self, case):
        M, D, dtype, name = case
        x, t, rotated = random_case(M, self.features, D, dtype)
        g = scale_of(name)
        if name.startswith("mxfp4"):
            out = jnp.float16 if M == 3 else jnp.float8_e5m2
            options = {"shift": -3, "multiplier": EIGHT_NINTHS, "dtype": out}
            got = self.run(transform_quantize_folded, x, t, **options)
            want = np.ldexp(values(rotated, "mxfp4", 0.375), -3)
        else:
            out, shift = (jnp.float16, 2) if M == 3 else (jnp.bfloat16, -9)
            options = {"format": name, "shift": shift, "dtype": out}
            got = self.run(transform_quantize_values, x, t, g, **options)
            want = np.ldexp(values(rotated, name, g), shift)
        assert got.dtype == out
        assert_same_values(got, want)

    def test_ties_exactly(self, format):
        x = tie_groups(format)
        g = 1.0 if format.startswith("nvfp4") else None
        got = self.run(transform_quantize_codes, x, None, g, format=format)
        assert_same_codes(got, exactly_quantized(x, format, g), exactly=True)

    def test_every_exponent_exactly(self, format):
        """But for groups so small that float32 products flush on some machines."""
        x = every_exponent()
        size = formats.get_format(format).group_size
        groups = np.abs(x).reshape(64, -1, size)
        sure = ~(groups.max(-1) <= 2.0**-100) | (groups == 0).all(-1)
        assert np.mean(sure) > 0.7
        pairs = np.repeat(sure, size // 2, axis=1)
        scales = (0.375, 0.0077, 40.0) if self.thorough else (0.0077,)
        for g in scales if format == "nvfp4/nvidia" else (None, *scales):
            got = self.run(transform_quantize_codes, x, None, g, format=format)
            want = quantized(x, format, g)
            np.testing.assert_array_equal(got[1][sure], want[1][sure])
            np.testing.assert_array_equal(got[0][pairs], want[0][pairs])

    def test_global_scale_at_run_time(self, format):
        """An array gives what the number gives, above the rule's own and below."""
        x, t, rotated = random_case(17, 128, 32, jnp.bfloat16)
        for g in (0.375, 0.0123) if self.thorough else (0.0123,):
            static = self.run(transform_quantize_codes, x, t, g, format=format)
            array = self.run(transform_quantize_codes, x, t, jnp.float32(g), format=format)
            assert_same_codes(array, static, exactly=True)
            assert_same_codes(array, quantized(rotated, format, g))

    def test_multiplier_is_the_global_scale(self):
        x, t, _ = random_case(17, 128, 32, jnp.float32)
        runs = (transform_quantize_folded, transform_quantize_codes)
        for run in runs[: 1 + self.thorough]:
            got = self.run(run, x, t, multiplier=EIGHT_NINTHS)
            want = self.run(run, x, t, 0.375)
            for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
                np.testing.assert_array_equal(a.astype(np.float32), b.astype(np.float32))

    @pytest.mark.parametrize("block", [16, 128])
    def test_hadamard(self, block):
        x, _, _ = random_case(17, 384, 32, jnp.bfloat16)
        h = hadamard.signs(block).astype(np.float64)
        rotated = x.astype(np.float64).reshape(17, -1, block) @ h.T * block**-0.5
        got = self.run(transform_quantize_codes, x, None, hadamard_block=block)
        want = quantized(rotated.reshape(17, 384).astype(np.float32), "mxfp4", None)
        assert_same_codes(got, want)

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
    def test_no_format_is_the_transform(self, dtype):
        """x Tᵀ rounded to x's dtype, then a shift and float16, saturating; Inf stays Inf."""
        x, t, rotated = random_case(17, 128, 32, dtype)
        options = {"format": None, "shift": -2}
        got = self.run(transform_quantize_values, x, t, **options).astype(np.float64)
        want = (rotated.astype(np.dtype(dtype)).astype(np.float32) / 4).astype(np.float16)
        np.testing.assert_allclose(got, want.astype(np.float64), rtol=2**-10, atol=2**-20)
        assert np.mean(got != want) < 0.02
        x = np.array([[1e5, -1e5, np.inf, np.nan] + 28 * [3.0]], np.float32)
        got = self.run(transform_quantize_values, x, None, format=None)
        want = [F16_MAX, -F16_MAX, np.inf, np.nan] + 28 * [3.0]
        np.testing.assert_array_equal(got[0].astype(np.float32), np.array(want, np.float32))

    @pytest.mark.parametrize("out", [jnp.float16, jnp.bfloat16])
    def test_no_format_rounds_to_bfloat16_first(self, out):
        if not self.rounds_to_bfloat16:
            pytest.skip("Triton's interpreter truncates to bfloat16")
        x, t, rotated = random_case(17, 128, 32, jnp.bfloat16)
        shift = 3 if out == jnp.float16 else 0
        options = {"format": None, "shift": shift, "dtype": out}
        got = self.run(transform_quantize_values, x, t, **options)
        want = np.ldexp(rotated.astype(jnp.bfloat16).astype(np.float64), shift)
        assert got.dtype == out
        assert np.mean(got.astype(np.float64) != want) <= 2e-3  # ties of a float32 sum
        np.testing.assert_allclose(got.astype(np.float64), want, rtol=2**-7)

    def test_folded_is_exact_at_every_exponent(self):
        magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 5.9])
        group = np.concatenate([magnitudes, -magnitudes, np.full(16, 3.0)]) / 3
        exponents = np.arange(-15, 14)
        for shift, out in ((0, jnp.float8_e5m2), (5, jnp.float16), (-7, jnp.float16)):
            x = np.ldexp(group, exponents[:, None] - shift).astype(np.float32)
            got = self.run(transform_quantize_folded, x, shift=shift, dtype=out)
            want = np.ldexp(np.rint(group * 6) / 6 * 3, exponents[:, None])
            want[:, [7, 15]] = np.ldexp(np.array([6.0, -6.0]), exponents[:, None])
            np.testing.assert_array_equal(got.astype(np.float64), want)

    def test_folded_saturates_above_and_flushes_below(self):
        x = np.ldexp(np.ones((8, 32)), [[16], [40], [90], [126], [-28], [-60], [-120], [-149]])
        dtypes = (jnp.float8_e5m2, jnp.float16) if self.converts_to_e5m2 else (jnp.float16,)
        for dtype in dtypes:
            got = self.run(transform_quantize_folded, x.astype(np.float32), dtype=dtype)
            want = np.repeat([[E5M2_MAX], [0.0]], 4, 0) * np.ones((1, 32))
            np.testing.assert_array_equal(got.astype(np.float64), want)

    @pytest.mark.parametrize("name", ["folded", "nvfp4", None, "codes", "nvfp4 codes"])
    def test_rows_and_nan(self, name):
        """Rows from M on are zeros, and a NaN or Inf reaches no other row."""
        x, t, _ = random_case(70, 256, 32, jnp.float32)
        bad = x.copy()
        bad[33, 5], bad[40, 200] = np.nan, np.inf
        options: dict[str, Any] = {"rows": 96}
        run, at = transform_quantize_values, 0
        if name == "folded":
            run = transform_quantize_folded
        elif name in ("codes", "nvfp4 codes"):
            run, at = transform_quantize_codes, 1
            options["format"] = "mxfp4" if name == "codes" else "nvfp4"
        else:
            options["format"] = name
        clean, y = (jax.tree.leaves(self.run(run, v, t, **options)) for v in (x, bad))
        others = np.setdiff1d(np.arange(70), [33, 40])
        for a, b in zip(clean, y, strict=True):
            assert a.shape[0] == 96
            assert not np.any(a[70:].astype(np.float32))
            np.testing.assert_array_equal(a[others], b[others])
        group = slice(0, 32), slice(192, 224)
        for row, columns in zip((33, 40), group, strict=True):
            if at == 0:
                assert not np.isfinite(y[0][row, columns].astype(np.float32)).any()
            else:
                size = 32 if name == "codes" else 16
                stored = y[1][row, columns.start // size : columns.stop // size]
                assert np.all(stored == (255 if size == 32 else 0x7F))
                assert not np.any(y[0][row, columns.start // 2 : columns.stop // 2])
