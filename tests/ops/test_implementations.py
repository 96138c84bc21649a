"""The table of implementations: each says whether it runs a layer, and runs what it says."""

from __future__ import annotations

import functools
import re
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from tests.support import fast_layers
from tests.support.fast_layers import compiled, tokens
from tests.support.gpu import AMPERE, BLACKWELL, HOPPER, on
from wush_jax.ops import dispatch
from wush_jax.ops.device import Device
from wush_jax.ops.implementations.base import Implementation, Regime
from wush_jax.ops.implementations.table import IMPLEMENTATIONS, REFERENCE

DEVICES = (HOPPER, BLACKWELL, AMPERE, Device("cpu", None), Device("tpu", None))


@pytest.fixture(scope="module")
def kernels():
    return fast_layers.kernels()


def test_the_table():
    assert {name: each.name for name, each in IMPLEMENTATIONS.items()} == {
        name: name for name in IMPLEMENTATIONS
    }
    assert list(IMPLEMENTATIONS.values())[-1] is REFERENCE
    assert all(each.summary and each.rows for each in IMPLEMENTATIONS.values())


@pytest.mark.parametrize("device", DEVICES, ids=str)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_asked_by_name_it_runs_or_says_why_not(kernels, name, device):
    each = IMPLEMENTATIONS[name]
    with on(device):
        for kernel in kernels.values():
            problem = each.problem(kernel, device)
            if problem is None:
                choice = dispatch.choose(kernel, device, name)
                assert choice == (name, "asked for by name")
                *some, last = each.regimes(kernel)
                assert last.most is None  # any number of tokens is taken
                assert [r.most for r in some] == sorted({r.most for r in some if r.most})
            else:
                with pytest.raises(NotImplementedError, match=re.escape(problem)):
                    dispatch.choose(kernel, device, name)


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_unasked_it_is_the_first_that_can(kernels, device):
    """And the reason names every one that was asked before it, with its own words."""
    with on(device):
        for kernel in kernels.values():
            choice = dispatch.choose(kernel, device)
            asked = [each for each in IMPLEMENTATIONS.values() if each.unasked(device)]
            problems = {each.name: each.problem(kernel, device) for each in asked}
            first = next(name for name, problem in problems.items() if problem is None)
            assert choice.implementation == first
            before = list(problems)[: list(problems).index(first)]
            assert all(f"{name}: {problems[name]}" in choice.reason for name in before)


def test_activations_of_other_dtypes(kernels):
    with on(HOPPER):
        choice = dispatch.choose(kernels["mxfp4"], HOPPER, dtype=jnp.dtype(jnp.float64))
    assert choice.implementation == "xla"
    assert "activations, not float64" in choice.reason


@pytest.mark.parametrize(
    ("device", "name"),
    [(HOPPER, "mxfp4"), (HOPPER, "nvfp4"), (HOPPER, "weights"), (BLACKWELL, "mxfp4")],
    ids=str,
)
def test_what_explain_prints_is_what_runs(kernels, device, name):
    """By the number of tokens, at both sides of each border."""
    kernel = kernels[name]
    with on(device):
        (row,) = wush_jax.explain({"layer": {"kernel": kernel}}).layers
        each = IMPLEMENTATIONS[row.implementation]
        regimes = each.regimes(kernel)
        assert row.products == tuple(map(str, regimes))
        borders = [r.most for r in regimes if r.most is not None] or [16]
        for tokens_ in sorted({n for most in borders for n in (1, most, most + 1)}):
            assert ran(each, kernel, tokens_) == [each.regime(kernel, tokens_).what] * 2


def ran(each: Implementation, kernel: Any, M: int) -> list[str]:
    """``what`` of the regimes whose encode and product are traced for M tokens."""
    found: list[str] = []

    def watched(regime: Regime) -> Regime:
        def note(function, *args, **kwargs):
            found.append(regime.what)
            return function(*args, **kwargs)

        return regime._replace(
            encode=functools.partial(note, regime.encode),
            product=functools.partial(note, regime.product),
        )

    traced = tuple(map(watched, each.regimes(kernel)))
    with mock.patch.object(type(each), "regimes", return_value=traced):
        jax.eval_shape(compiled(None), tokens(M), kernel)
    return found


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_no_tokens_are_no_rows(kernels, name):
    device = BLACKWELL if name == "block_scaled" else HOPPER
    with on(device):
        kernel = next(
            k for k in kernels.values() if IMPLEMENTATIONS[name].problem(k, device) is None
        )
        y = compiled(name)(tokens(0), kernel)
    assert y.shape == (0, fast_layers.N)
    np.testing.assert_array_equal(y, np.zeros((0, fast_layers.N)))
