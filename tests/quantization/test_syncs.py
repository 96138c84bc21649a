"""How often quantizing waits for the device: once an input, whatever reads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import pytest

import wush_jax
from tests.support import flax_models as models
from wush_jax import Config
from wush_jax.quantization import group
from wush_jax.quantization.quantize import run

X = jax.random.normal(jax.random.key(2), (4, 16, 32))
# Everything by which the host reads an array.
_READS = ("__array__", "__bool__", "__complex__", "__float__", "__index__", "__int__", "item")
_READS += ("__format__", "__iter__", "tolist")


class Fetches:
    """``whole`` calls of `jax.device_get`, and the names of ``other`` reads."""

    def __init__(self):
        self.whole, self.other = 0, []


@contextlib.contextmanager
def counted() -> Iterator[Fetches]:
    """Counts what is fetched from the device."""
    found, inside = Fetches(), []
    kind, device_get = type(jnp.zeros(())), jax.device_get

    def fetch(tree: Any) -> Any:
        found.whole += 1
        inside.append(True)
        try:
            return device_get(tree)
        finally:
            inside.pop()

    def read(name: str) -> Any:
        original = getattr(kind, name)

        def method(self, *args, **kwargs):
            if not inside:
                found.other.append(name)
            return original(self, *args, **kwargs)

        return method

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(jax, "device_get", fetch))
        for name in _READS:
            stack.enter_context(mock.patch.object(kind, name, read(name)))
        yield found


def test_the_counter_sees_every_way_to_read():
    x = jnp.ones(())
    for read in (float, int, bool, lambda x: x.item(), lambda x: x.tolist(), format):
        with counted() as found:
            read(x)
        assert found.other
        assert not found.whole
    with counted() as found:
        jax.device_get(x)
    assert (found.whole, found.other) == (1, [])


CONFIGS = {
    "rtn": Config(sample_tokens=32),
    "gptq": Config(sample_tokens=32, solver="gptq", scale_search=True),
    "nvidia": Config(sample_tokens=32, format="nvfp4/nvidia"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("stacked", [False, True], ids=["one", "stack"])
def test_an_input_is_waited_for_once(name, stacked):
    """Layers, slices of a stack and comparisons of a report are all fetched together."""
    model: Any = models.Scanned(layers=2) if stacked else models.Mlp()
    x = jnp.ones((2, 8), jnp.int32) if stacked else X
    params = models.init(model, x)["params"]
    calibration = wush_jax.calibrate(params, [x], model=model, config=CONFIGS[name])
    solved = []
    solve_group = group.solve_group

    def watched(one: group.Group, *, compare: bool) -> Any:
        with counted() as found:
            out = solve_group(one, compare=compare)
        solved.append(one.leader)
        assert found.whole == 1, one.leader
        assert not found.other, one.leader
        return out

    with (
        mock.patch("wush_jax.quantization.quantize.solve_group", watched),
        counted() as found,
    ):
        run(params, calibration, model=model, config=CONFIGS[name], key=jax.random.key(0))
    assert len(solved) >= 2
    # one more for all kernels together: whether they are finite
    assert found.whole == len(solved) + 1
    assert not found.other


def test_comparisons_are_computed_for_a_report_only():
    params = models.init(models.Mlp(), X)["params"]
    calibration = wush_jax.calibrate(params, [X], model=models.Mlp())
    with mock.patch.object(
        group.measure, "orthogonal_error", wraps=group.measure.orthogonal_error
    ) as compared:
        wush_jax.quantize(params, calibration, model=models.Mlp())
        assert not compared.called
        _, report = wush_jax.quantize(params, calibration, model=models.Mlp(), return_report=True)
    assert compared.call_count == 4  # two layers, identity and Hadamard
    assert all(row.error_hadamard is not None for row in report.layers)
