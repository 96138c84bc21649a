"""Resampling of whole sequences: identities, and the errors that theory gives."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wush_jax.evaluation import bootstrap
from wush_jax.evaluation.bootstrap import resample, standard_error

KEY = jax.random.key(3)
COLUMNS = hnp.arrays(np.float64, (7, 2), elements=st.floats(-100, 100))


@settings(max_examples=30, deadline=None)
@given(COLUMNS, COLUMNS, st.floats(-3, 3))
def test_draws_are_the_same_for_all_columns(a, b, factor):
    """So totals are linear, and differences between columns are paired."""
    both = resample(np.stack([a, b], axis=1), 20, KEY)
    assert both.shape == (20, 2, 2)
    ra, rb = both[:, 0], both[:, 1]
    np.testing.assert_allclose(resample(a, 20, KEY), ra, atol=1e-9)
    np.testing.assert_allclose(resample(a + factor * b, 20, KEY), ra + factor * rb, atol=1e-9)


def test_whole_sequences_are_drawn_with_replacement():
    """Powers of 100 show how often each sequence was drawn."""
    totals = resample(100.0 ** np.arange(7), 20, KEY)
    times = totals[:, None] // 100.0 ** np.arange(7) % 100
    np.testing.assert_array_equal(times.sum(1), 7)
    assert times.max() > 1
    assert len(np.unique(totals)) > 10


def test_the_key_decides_the_draws():
    sums = np.arange(7.0)
    np.testing.assert_array_equal(resample(sums, 20, KEY), resample(sums, 20, KEY))
    assert (resample(sums, 20, KEY) != resample(sums, 20, jax.random.key(4))).any()


def test_standard_error_of_a_mean_is_the_analytic_one(monkeypatch):
    """Drawn in chunks, which differ from one another."""
    monkeypatch.setattr(bootstrap, "_CHUNK", 1000 * 50)
    values = np.random.default_rng(0).gamma(2.0, size=50)
    totals = resample(values, 4000, KEY)
    assert len(np.unique(totals)) > 3990
    expected = values.std() / np.sqrt(50)
    assert standard_error(totals / 50) == pytest.approx(expected, rel=0.05)
    assert np.mean(totals / 50) == pytest.approx(values.mean(), abs=0.1 * expected)


def test_standard_error_of_a_ratio_is_the_delta_method_s():
    """Of a mean over tokens, whose number differs from sequence to sequence."""
    rng = np.random.default_rng(1)
    tokens = rng.integers(5, 50, size=400).astype(float)
    sums = tokens * rng.normal(3, 0.5, size=400)
    totals = resample(np.stack([sums, tokens], axis=1), 2000, KEY)
    residuals = sums - tokens * sums.sum() / tokens.sum()
    expected = np.sqrt(np.sum(residuals**2)) / tokens.sum()
    assert standard_error(totals[:, 0] / totals[:, 1]) == pytest.approx(expected, rel=0.08)


def test_no_error_is_told_where_there_is_none():
    assert resample(np.ones((7, 2)), 0, KEY).shape == (0, 2)
    assert np.isnan(standard_error(np.ones(1)))
    assert np.isnan(standard_error(np.array([1.0, np.inf])))
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(np.sqrt(2))
