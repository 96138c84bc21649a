"""What a layer computes on a `QuantizedKernel`: against float64, token by token, with gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.quantized_layers import (
    CASES,
    D,
    K,
    M,
    N,
    activations,
    assert_relative,
    dequantize,
    fit,
    linear,
    quantized,
    solved,
    weights,
)
from wush_jax import formats
from wush_jax.config import Config
from wush_jax.layers.quantized_kernel import QuantizedKernel, stack
from wush_jax.ops import online as ops
from wush_jax.solvers.rtn import transformed_weights
from wush_jax.transforms import rotate as rotate_lib

encode = jax.jit(lambda x, kernel: ops.encode(x, kernel).encoded)
rotate = jax.jit(rotate_lib.rotate, static_argnums=2)


def oracle(x, kernel):
    """y from the stored bits and the codes of x, in float64."""
    scale = float(kernel.global_scale[0, 0])
    if kernel.act_global_scale is not None:
        scale *= float(kernel.act_global_scale[0, 0])
    values = np.asarray(jax.jit(QuantizedKernel.values)(kernel), np.float64)
    return np.asarray(encode(x, kernel), np.float64) @ values.T * scale


@pytest.mark.parametrize("transform", ["wush", "diagonal", "random", "hadamard", "identity"])
def test_bfloat16_transforms_pair(transform):
    """x Tᵀ with T as stored, times T⁻ᵀ W before the quantizer, is x W to float32 rounding."""
    config = Config("mxfp4", transform=transform, transform_block=D).layer()
    w, x = weights(6), activations(6, 256)
    forward = fit(w, x, config)
    inverse_applied, stored = jax.jit(transformed_weights, static_argnums=2)(w, forward, transform)
    assert (stored is None) == (transform in ("identity", "hadamard"))
    assert stored is None or stored.dtype == jnp.bfloat16
    kernel = dataclasses.replace(quantized(), transform=stored, transform_name=transform)
    rotated = np.asarray(rotate(x, stored, kernel.hadamard_block), np.float64)
    exact = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
    assert_relative(rotated @ np.asarray(inverse_applied, np.float64), exact, 1e-5)


@pytest.mark.parametrize(("fmt", "transform"), CASES)
def test_weight_only_is_a_float_layer(fmt, transform):
    kernel = quantized(0, fmt, transform, None)
    x = activations(7, M)
    exact = np.asarray(x, np.float64) @ np.asarray(dequantize(kernel), np.float64)
    assert_relative(linear(x, kernel), exact, 1e-5)


@pytest.mark.parametrize(("fmt", "transform"), CASES)
def test_leading_axes_and_dtypes(fmt, transform):
    kernel, x = quantized(0, fmt, transform), activations(8, 2, M)
    y = linear(x, kernel)
    assert (y.shape, y.dtype) == ((2, M, N), jnp.float32)
    assert_relative(y, oracle(x, kernel), 1e-6)
    half = x.astype(jnp.bfloat16)
    low = linear(half, kernel)
    assert low.dtype == jnp.bfloat16
    assert_relative(low, oracle(half, kernel), 2.0**-8)  # one rounding, of the result
    codes, same = (encode(a, kernel) for a in (half, half.astype(jnp.float32)))
    assert (np.asarray(codes, np.float32) != same).mean() <= (0.01 if fmt == "int8" else 1e-3)
    one = linear(x[0, 0], kernel)
    np.testing.assert_allclose(one, y[0, 0], rtol=1e-4, atol=1e-5)


def test_wrong_calls_are_refused():
    kernel = quantized()
    with pytest.raises(ValueError, match=r"x has 96 features .* the kernel takes 128"):
        ops.linear(jnp.zeros((2, 96)), kernel)
    with pytest.raises(ValueError, match=r"unknown implementation 'mps'; there are .*fp8, .*xla"):
        ops.linear(jnp.zeros((2, K)), kernel, implementation="mps")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize(("fmt", "transform"), CASES[:4])
def test_a_broken_token_stays_alone(fmt, transform, bad):
    kernel, x = quantized(0, fmt, transform), activations(9, 2, M)
    y = linear(x.at[1, 3, 40].set(bad), kernel)
    assert jnp.isnan(y[1, 3]).all()
    others = np.ones((2, M), bool)
    others[1, 3] = False
    np.testing.assert_array_equal(y[others], linear(x, kernel)[others])


@pytest.mark.parametrize(("fmt", "transform"), CASES)
def test_gradient_is_straight_through(fmt, transform):
    """That of x -> (x Tᵀ) Â, which is the dequantized kernel's."""
    kernel, x = quantized(0, fmt, transform), activations(10, M)
    cotangent = np.random.default_rng(0).normal(size=(M, N)).astype(np.float32)
    found = jax.jit(jax.grad(lambda x: jnp.sum(ops.linear(x, kernel) * cotangent)))(x)
    assert_relative(found, cotangent @ np.asarray(dequantize(kernel)).T, 1e-5)


def test_experts_are_a_loop_over_kernels():
    kernels = [quantized(seed) for seed in range(3)]
    experts = dataclasses.replace(stack(kernels), roles="bkn", kernel_shape=(3, K, N))
    assert (experts.shape, experts.batch_ndim, experts.features) == ((3, K, N), 1, K)
    x = activations(11, 3, M)
    expected = jnp.stack([linear(x[i], kernel) for i, kernel in enumerate(kernels)])
    np.testing.assert_allclose(linear(x, experts), expected, rtol=1e-5, atol=1e-5)
    assert_relative(dequantize(experts)[2], dequantize(kernels[2]), 1e-6)
    grads = jax.jit(jax.grad(lambda x: ops.linear(x, experts).sum()))(x)
    alone = jax.jit(jax.grad(lambda x: ops.linear(x, kernels[2]).sum()))(x[2])
    np.testing.assert_allclose(grads[2], alone, rtol=1e-4, atol=1e-5)
    two_layers = stack([experts, experts])
    assert two_layers.shape == (2, 3, K, N)
    assert jax.eval_shape(QuantizedKernel.dequantize, two_layers).shape == (2, 3, K, N)


def test_padding_of_features():
    """K = 120 in whole blocks of 32: the missing features are zeros."""
    w = jnp.pad(weights(0)[:120], ((0, 8), (0, 0)))
    config = Config("mxfp4", transform_block=D, pad=True).layer()
    x = activations(12, M)[:, :120]
    kernel = solved(w, jnp.pad(activations(0, 256)[:, :120], ((0, 0), (0, 8))), config)
    padded = dataclasses.replace(kernel, kernel_shape=(120, N))
    assert (padded.features, padded.padded_features) == (120, K)
    assert dequantize(padded).shape == (120, N)
    full = jnp.pad(x, ((0, 0), (0, 8)))
    np.testing.assert_array_equal(linear(x, padded), linear(full, kernel))
    assert formats.get_format("mxfp4") == padded.format
