"""`QuantizedKernel` as a citizen of JAX: a pytree in place of a float kernel, stacked, sharded."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.support.quantized_layers import (
    CASES,
    D,
    K,
    M,
    N,
    activations,
    assert_relative,
    dequantize,
    linear,
    quantized,
    weights,
)
from wush_jax.layers import sharding
from wush_jax.layers.contraction import Contraction
from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import is_quantized, stack
from wush_jax.ops import online as ops


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
