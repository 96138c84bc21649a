"""Layers by the fast implementations: what they compute, prepared or not, and how they transform.

On the CPU a pretended Hopper device sends `wush_jax.ops` through the whole path, with XLA
references of the kernels' own number formats in place of the kernels. On a GPU the kernels run.
"""

import contextlib
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from kernels.bench.data import make_kernel
from tests.support import fast_layers
from tests.support import flax_models as models
from tests.support.distance import frobenius
from tests.support.fast_layers import CASES, K, N, compiled, reference, tokens
from tests.support.gpu import AMPERE, HOPPER, on, on_gpu
from wush_jax.ops import online as ops


@pytest.fixture(scope="module")
def kernels():
    return fast_layers.kernels()


class Layers:
    """The fast path against the reference."""

    implementation: str | None = None

    def context(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @classmethod
    @functools.cache
    def program(cls, implementation):
        return compiled(implementation)

    def run(self, x, kernel, implementation=None):
        with self.context():
            return self.program(implementation)(x, kernel)

    @pytest.mark.parametrize("name", [n for n in CASES if n != "int4"])
    @pytest.mark.parametrize("M", [3, 100])
    def test_agrees_with_the_reference(self, kernels, name, M):
        x = tokens(M)
        expected = reference(x, kernels[name])
        y = self.run(x, kernels[name])
        assert y.dtype == jnp.bfloat16
        if name == "weights" and M > 64:
            # rounds its activations once, as the reference does, but to other numbers
            exact = reference(x.astype(jnp.float32), kernels[name])
            assert frobenius(y, exact) <= 1.1 * frobenius(expected, exact)
        else:  # the same numbers, summed in another order and rounded once
            assert frobenius(y, expected) <= 2.5e-3
        np.testing.assert_array_equal(self.run(x, kernels[name].private()), y)

    def test_float32(self, kernels):
        x = tokens(100, dtype=jnp.float32)
        expected = reference(x, kernels["mxfp4"])
        assert frobenius(self.run(x, kernels["mxfp4"], "fp8_precise"), expected) <= 5e-4
        assert frobenius(self.run(x[:5], kernels["mxfp4"]), expected[:5]) <= 5e-4

    def test_leading_dimensions_vmap_and_scan(self, kernels):
        kernel, x = kernels["mxfp4"], tokens(2, 3, 7)
        flat = self.run(x.reshape(-1, K), kernel).reshape(2, 3, 7, N)
        np.testing.assert_array_equal(self.run(x, kernel), flat)
        with self.context():
            mapped = jax.vmap(jax.vmap(lambda x: ops.linear(x, kernel)))(x)
            scanned = jax.lax.scan(lambda c, x: (c, ops.linear(x, kernel)), 0, x)[1]
        np.testing.assert_array_equal(mapped, flat)
        np.testing.assert_array_equal(scanned, flat)

    def test_vmap_over_kernels(self, kernels):
        two = jax.tree.map(lambda *leaves: jnp.stack(leaves), kernels["mxfp4"], kernels["mxfp4"])
        x = tokens(2, 5)
        with self.context():
            y = jax.jit(jax.vmap(lambda x, k: ops.linear(x, k)))(x, two)
            same = jax.jit(jax.vmap(lambda k: ops.linear(x[0], k)))(two)
        np.testing.assert_array_equal(y[1], self.run(x[1], kernels["mxfp4"]))
        np.testing.assert_array_equal(same[1], y[0])

    @pytest.mark.parametrize("M", [4, 70])
    def test_gradient_is_straight_through(self, kernels, M):
        kernel, x = kernels["mxfp4"], tokens(M, dtype=jnp.float32)
        weights = jax.random.normal(jax.random.key(3), (M, N))

        def loss(x, implementation):
            return jnp.sum(ops.linear(x, kernel, implementation=implementation) * weights)

        with self.context():
            gradient = jax.jit(jax.grad(loss), static_argnums=1)(x, None)
            along = jax.jit(lambda x, v: jax.jvp(lambda x: loss(x, None), (x,), (v,))[1])
            tangent = along(x, jnp.ones_like(x))
        expected = jax.jit(jax.grad(loss), static_argnums=1)(x, "xla")
        assert frobenius(gradient, expected) <= 1e-3
        assert abs(float(tangent) / float(expected.sum()) - 1) <= 1e-2

    def test_nan_stays_with_its_token(self, kernels):
        for M in (5, 80):
            x = tokens(M)
            y = self.run(x.at[2, 9].set(jnp.nan), kernels["mxfp4"])
            assert np.isnan(np.asarray(y[2], np.float32)).all()
            clean = np.delete(np.asarray(self.run(x, kernels["mxfp4"])), 2, 0)
            np.testing.assert_array_equal(np.delete(np.asarray(y), 2, 0), clean)

    def test_padded_features(self):
        x = jax.random.normal(jax.random.key(0), (64, 72))
        params = {"layer": models.init(nn.Dense(16), x)["params"]}
        config = wush_jax.Config(pad=True)
        kernel = wush_jax.quantize(params, [{"layer": x}], config=config)["layer"]["kernel"]
        assert frobenius(self.run(x, kernel), reference(x, kernel)) <= 5e-3


class TestPretended(Layers):
    def context(self):
        return on(HOPPER)


@on_gpu
class TestOnGpu(Layers):
    @pytest.mark.parametrize("M", [1, 3, 17, 1000])
    def test_mosaic(self, kernels, M):
        y = self.run(tokens(M), kernels["mxfp4"], "fp8_mosaic")
        assert frobenius(y, self.run(tokens(M), kernels["mxfp4"])) <= 2.5e-3

    def test_the_kernels_ran(self, kernels):
        for M, count in ((3, 2), (100, 2)):
            text = jax.jit(ops.linear).lower(tokens(M), kernels["mxfp4"]).as_text()
            assert text.count("stablehlo.custom_call @triton_kernel_call") == count

    def test_xla_runs_its_fp8_product(self):
        """Of a size at which XLA takes its library's product, with the factor folded in."""
        kernel = make_kernel(jax.random.key(2), 4096, 14336)
        x = tokens(1024)[:, :1].repeat(4096, 1)
        text = jax.jit(ops.linear).lower(x, kernel).compile().as_text()
        assert "__cublas$lt$matmul$f8" in str(text)


def test_keeping_fp8_weights_changes_no_result(kernels):
    with on(HOPPER):
        kept = wush_jax.prepare(kernels, keep_fp8=True)
        assert kept["mxfp4"].expanded.dtype == jnp.float8_e4m3fn
        assert kept["nvfp4"].expanded is None
        assert kept["mxfp4"].nbytes == kernels["mxfp4"].nbytes + N * K
        for M in (5, 100):
            x = tokens(M)
            run = TestPretended().run
            np.testing.assert_array_equal(run(x, kept["mxfp4"]), run(x, kernels["mxfp4"]))
    two = jax.tree.map(lambda *x: jnp.stack(x), kernels["mxfp4"], kernels["mxfp4"])
    with on(HOPPER):
        stacked = wush_jax.prepare(two, keep_fp8=True)
    np.testing.assert_array_equal(stacked.expanded[1], kept["mxfp4"].expanded)
    assert wush_jax.unprepare(kept)["mxfp4"].expanded is None


def test_prepare_is_reversible_and_changes_no_result(kernels):
    qparams = {"a": {"kernel": kernels["mxfp4"]}, "b": {"kernel": kernels["int4"]}}
    with on(HOPPER):
        prepared = wush_jax.prepare(qparams)
        again = wush_jax.prepare(prepared)
    assert prepared["a"]["kernel"].layout == "private"
    assert prepared["b"]["kernel"] is kernels["int4"]
    assert (prepared["a"]["kernel"].codes != kernels["mxfp4"].codes).any()
    back = wush_jax.unprepare(again)
    jax.tree.map(np.testing.assert_array_equal, back, qparams)
    assert jax.tree.structure(back) == jax.tree.structure(qparams)
    x = tokens(3)
    np.testing.assert_array_equal(  # the reference reads both
        reference(x, prepared["a"]["kernel"]),
        reference(x, kernels["mxfp4"]),
    )
    floats = (wush_jax.dequantize(p)["a"]["kernel"] for p in (prepared, qparams))
    np.testing.assert_array_equal(*floats)
    with on(AMPERE):
        assert wush_jax.prepare(qparams)["a"]["kernel"].layout == "public"
