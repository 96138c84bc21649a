"""Which implementation a layer gets, why, and what of it falls back to another one."""

import dataclasses

import jax
import numpy as np
import pytest

import wush_jax
from tests.support import fast_layers
from tests.support.distance import frobenius
from tests.support.fast_layers import compiled, reference, tokens
from tests.support.gpu import AMPERE, BLACKWELL, HOPPER, on
from wush_jax.ops import dispatch
from wush_jax.ops import online as ops
from wush_jax.ops.device import Device

fast = compiled(None)


@pytest.fixture(scope="module")
def kernels():
    return fast_layers.kernels()


def test_what_each_device_gets(kernels):
    with on(HOPPER):
        chosen = {name: dispatch.choose(k).implementation for name, k in kernels.items()}
        (row,) = wush_jax.explain({"layer": {"kernel": kernels["int4"]}}).layers
    assert chosen == {
        "mxfp4": "fp8",
        "hadamard": "fp8",
        "identity": "fp8",
        "nvfp4": "bf16",
        "nvidia": "bf16",
        "weights": "bf16",
        "int4": "xla",
    }
    assert row.implementation == "xla"
    assert "does not take int4" in row.reason
    with on(BLACKWELL):
        assert dispatch.choose(kernels["mxfp4"]).implementation == "block_scaled"
        assert dispatch.choose(kernels["nvfp4"]).implementation == "block_scaled"
        assert dispatch.choose(kernels["weights"]).implementation == "xla"
    for device in (AMPERE, Device("gpu", (8, 9)), Device("cpu", None), Device("tpu", None)):
        choice = dispatch.choose(kernels["mxfp4"], device)
        assert choice.implementation == "xla"
        assert str(device) in choice.reason


def test_weights_that_fp8_does_not_hold_fall_back_and_say_so(kernels):
    with on(HOPPER):
        wide = dataclasses.replace(kernels["mxfp4"], exact_in="float16")
        choice = dispatch.choose(wide)
        assert choice.implementation == "bf16"
        assert "span more than FP8 holds" in choice.reason
        widest = dataclasses.replace(kernels["mxfp4"], exact_in="float32", exponents=None)
        assert dispatch.choose(widest).implementation == "xla"
        for M in (5, 100):
            x = tokens(M)
            y = fast(x, wide)
            assert frobenius(y, reference(x, kernels["mxfp4"])) <= 2.5e-3


def test_rows_shared_with_a_layer_that_only_the_reference_takes(kernels):
    """Of layers that share their input, one may not fit any fast implementation."""
    kernel, x = kernels["mxfp4"], tokens(5)
    widest = dataclasses.replace(kernel, exact_in="float32", exponents=None)
    with on(HOPPER):
        y = jax.jit(lambda x: ops.matmul(ops.encode(x, kernel), widest, x.dtype))(x)
    np.testing.assert_array_equal(y, reference(x, widest))


def test_named_implementations(kernels):
    x = tokens(2)
    with pytest.raises(ValueError, match="fp8_mosaic"):
        ops.linear(x, kernels["mxfp4"], implementation="fp5")
    if jax.default_backend() == "cpu":
        with pytest.raises(NotImplementedError, match="this is cpu"):
            ops.linear(x, kernels["mxfp4"], implementation="fp8")
    with on(HOPPER), pytest.raises(NotImplementedError, match="int4"):
        ops.linear(x, kernels["int4"], implementation="fp8")
    with on(AMPERE), pytest.raises(NotImplementedError, match="sm_80"):
        ops.linear(x, kernels["mxfp4"], implementation="fp8")
