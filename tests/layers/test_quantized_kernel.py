"""`QuantizedKernel` as a citizen of JAX, and the layer that runs on it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from wush_jax import formats
from wush_jax.config import Config
from wush_jax.fitting.solve import as_kernel
from wush_jax.frontends.linen.discover import Layer
from wush_jax.layers import sharding
from wush_jax.layers.contraction import Contraction
from wush_jax.layers.quantized_kernel import QuantizedKernel, is_quantized, stack
from wush_jax.ops import online as ops
from wush_jax.solvers.rtn import rtn, transformed_weights
from wush_jax.statistics import moments
from wush_jax.transforms import families
from wush_jax.transforms import rotate as rotate_lib

K, N, M, D = 128, 48, 12, 32
CASES = (("mxfp4", "wush"), ("nvfp4", "wush"), ("int4", "identity"), ("mxfp4", "hadamard"))
CASES += (("int8", "diagonal_hadamard"),)

linear = jax.jit(ops.linear)
encode = jax.jit(lambda x, kernel: ops.encode(x, kernel).encoded)
rotate = jax.jit(rotate_lib.rotate, static_argnums=2)
dequantize = jax.jit(QuantizedKernel.dequantize)


def activations(seed, *shape):
    rng = np.random.default_rng(seed)
    gains = np.exp(np.random.default_rng(0).normal(size=K))  # the same features are large
    return jnp.asarray(rng.normal(size=(*shape, K)) * gains, jnp.float32)


def weights(seed):
    return jnp.asarray(np.random.default_rng([seed, 1]).normal(size=(K, N)) / 8, jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def fit(w, x, config):
    sx = moments.second_moment(moments.of(x, config.block))
    sw = moments.weight_moment(w, config.block)
    return families.make(config.transform, sx, sw, key=jax.random.key(0)).forward


@functools.partial(jax.jit, static_argnames="config")
def solved(w, x, config):
    act = None
    if config.act_format is not None:
        constant = formats.activation_scale(config.act_format, config.format)
        act = jnp.full((1, 1), constant or 1 / 64, jnp.float32)
    return as_kernel(rtn(w, fit(w, x, config), config), act, w.shape, config)


@functools.cache
def quantized(seed=0, fmt="mxfp4", transform="wush", act="same"):
    config = Config(fmt, act, transform, transform_block=D).layer()
    return solved(weights(seed), activations(seed, 256), config)


def oracle(x, kernel):
    """y from the stored bits and the codes of x, in float64."""
    scale = float(kernel.global_scale[0, 0])
    if kernel.act_global_scale is not None:
        scale *= float(kernel.act_global_scale[0, 0])
    values = np.asarray(jax.jit(QuantizedKernel.values)(kernel), np.float64)
    return np.asarray(encode(x, kernel), np.float64) @ values.T * scale


def assert_relative(found, expected, relative):
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= relative * np.linalg.norm(expected)


@pytest.mark.parametrize(("fmt", "transform"), CASES)
def test_it_stands_for_a_float_kernel(fmt, transform):
    kernel = quantized(0, fmt, transform)
    assert (kernel.shape, kernel.ndim, kernel.size) == ((K, N), 2, K * N)
    assert (kernel.features, kernel.padded_features, kernel.outputs) == (K, K, N)
    bits = 8 if fmt == "int8" else 4
    assert kernel.codes.nbytes == K * N * bits // 8
    stored = {"wush": K * D * 2, "diagonal_hadamard": K * D * 2}.get(transform, 0)
    assert kernel.nbytes == kernel.codes.nbytes + kernel.scales.nbytes + 8 + stored
    for leaf in jax.tree.leaves(kernel):
        assert not jnp.issubdtype(leaf.dtype, jnp.floating) or leaf.size < K * N
    back = dequantize(kernel)
    assert (back.shape, back.dtype) == ((K, N), jnp.float32)
    assert_relative(back, weights(0), 0.02 if fmt == "int8" else 0.3)
    half = dequantize(dataclasses.replace(kernel, dtype="bfloat16"))
    np.testing.assert_array_equal(half, back.astype(jnp.bfloat16))
    signal = activations(3, M) @ weights(0)
    assert_relative(linear(activations(3, M), kernel), signal, 0.03 if fmt == "int8" else 0.25)


def test_pytree():
    kernel = quantized()
    leaves, structure = jax.tree.flatten(kernel)
    assert len(leaves) == 5
    again = jax.tree.unflatten(structure, leaves)
    assert jax.tree.structure(again) == structure
    assert len(jax.tree.leaves({"a": kernel}, is_leaf=is_quantized)) == 1
    identity = quantized(0, "int4", "identity", None)
    assert len(jax.tree.leaves(identity)) == 3  # neither a transform nor activations' scale
    through = jax.jit(lambda k: k)(kernel)
    jax.tree.map(np.testing.assert_array_equal, through, kernel)
    shapes = jax.eval_shape(lambda k: k, kernel)
    assert (shapes.shape, shapes.nbytes) == (kernel.shape, kernel.nbytes)
    out = jax.eval_shape(ops.linear, jax.ShapeDtypeStruct((3, K), jnp.bfloat16), shapes)
    assert (out.shape, out.dtype) == ((3, N), jnp.bfloat16)


def test_stacked_kernels_scan_and_vmap():
    kernels = [quantized(seed) for seed in range(3)]
    stacked = stack(kernels)
    assert stacked.shape == (3, K, N)
    assert_relative(dequantize(stacked)[1], dequantize(kernels[1]), 1e-6)
    x = activations(4, M)
    expected = jnp.stack([linear(x, kernel) for kernel in kernels])
    mapped = jax.jit(jax.vmap(ops.linear, in_axes=(None, 0)))(x, stacked)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5, atol=1e-5)
    scanned = jax.jit(lambda ks: jax.lax.scan(lambda c, k: (c, ops.linear(x, k)), 0, ks)[1])
    np.testing.assert_allclose(scanned(stacked), expected, rtol=1e-5, atol=1e-5)


def test_donation():
    kernel = jax.tree.map(jnp.copy, quantized())
    doubled = jax.jit(
        lambda k: dataclasses.replace(k, global_scale=2 * k.global_scale), donate_argnums=0
    )(kernel)  # a warning that a buffer was not usable would be an error
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(kernel))
    np.testing.assert_array_equal(dequantize(doubled), 2 * dequantize(quantized()))


@pytest.mark.parametrize("spec", [("k", "n"), (None, "n"), ("k", None), (None, ("k", "n"))])
@pytest.mark.parametrize(("fmt", "transform"), [CASES[0], CASES[2]])
def test_sharded(fmt, transform, spec):
    kernel = quantized(0, fmt, transform)
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices; tests/conftest.py makes them on CPU")
    mesh = Mesh(np.array(jax.devices()[:8]).reshape(2, 4), ("k", "n"))
    layer = Layer("dense/kernel", Contraction.dense(2), (K, N), (0,))
    where = sharding.shardings(kernel, NamedSharding(mesh, PartitionSpec(*spec)), layer)
    placed = jax.device_put(kernel, where)
    k, n = spec
    assert placed.codes.sharding.spec == PartitionSpec(n, k)
    assert placed.scales.sharding.spec == PartitionSpec(n, k)
    if kernel.transform is not None:
        assert placed.transform.sharding.spec == PartitionSpec(k, None, None)
    x = activations(5, M)
    assert_relative(linear(x, placed), linear(x, kernel), 1e-6)
    assert_relative(dequantize(placed), dequantize(kernel), 1e-6)


def test_a_kernel_split_too_finely_is_refused():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices; tests/conftest.py makes them on CPU")
    mesh = Mesh(np.array(jax.devices()[:8]), ("k",))
    layer = Layer("mlp/up/kernel", Contraction.dense(2), (K, N), (0,))
    split = NamedSharding(mesh, PartitionSpec("k"))
    with pytest.raises(ValueError, match=r"mlp/up: K=128 is split 8 ways .* at most 4 ways"):
        sharding.shardings(quantized(), split, layer)


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
