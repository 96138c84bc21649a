"""The few-token product and the expansion of weights: one class an operation, one subclass an
implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.distance import frobenius
from tests.support.gpu import on_gpu, poison
from wush_jax import formats
from wush_jax.formats import private_layout as layout
from wush_kernels.expand import expand
from wush_kernels.quantized_matmul import decode_matmul
from wush_kernels.quantized_matmul.decode_config import Config, config

SHIFT = 3


@functools.cache
def weights(N, K, fmt):
    """Packed weights of about six octaves, their exponents (shift, offset), and their values."""
    codes, scales, values = _weights(N, K, fmt)
    offset = 0 if fmt == "nvfp4" else 133 - int(scales.max())
    exponents = jnp.asarray([[SHIFT, offset]], jnp.int32)
    return codes, scales, exponents, np.asarray(values, np.float64)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _weights(N, K, fmt):
    keys = jax.random.split(jax.random.key(N * K), 2)
    w = jax.random.normal(keys[0], (N, K)) * jnp.exp2(jax.random.uniform(keys[1], (N, 1), maxval=4))
    q = formats.quantize(w, fmt)
    values = formats.dequantize(formats.Quantized(q.codes, q.scales, jnp.float32(1), q.format))
    return q.codes, q.scales, values


to_private = jax.jit(layout.to_private)


def arranged(codes, scales, codes_layout):
    return to_private(codes, scales) if codes_layout == "private" else (codes, scales)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def tokens(M, K, dtype):
    x = jax.random.normal(jax.random.key(M), (M, K)) * 4
    if dtype == jnp.float8_e5m2:
        x = formats.quantized_values(x, "mxfp4")[0]
    return x.astype(dtype)


class DecodeMatmul:
    """activations x weightsᵀ x scales, for every shape, format and layout."""

    implementation: str

    def product(
        self,
        M,
        N,
        K,
        fmt="mxfp4",
        dtype=jnp.float8_e5m2,
        kind="public",
        out=jnp.bfloat16,
        **options,
    ):
        codes, scales, exponents, values = weights(N, K, fmt)
        x = tokens(M, K, dtype)
        poison()
        y = jax.jit(
            lambda x, codes, scales, exponents: decode_matmul(
                x,
                codes,
                scales,
                exponents,
                (jnp.full((1, 1), 0.5), jnp.full((1, 1), 0.75)),
                format=fmt,
                codes_layout=kind,
                implementation=self.implementation,
                dtype=out,
                **options,
            )
        )(x, *arranged(codes, scales, kind), exponents)
        return y, np.asarray(x, np.float64) @ values.T * (0.375 * 2.0**-SHIFT)

    @pytest.mark.parametrize("M", [3, 64])
    @pytest.mark.parametrize(("N", "K", "kind"), [(40, 96, "public"), (48, 256, "private")])
    def test_exact_to_float32_sums(self, M, N, K, kind):
        y, expected = self.product(M, N, K, kind=kind, dtype=jnp.float8_e5m2, out=jnp.float32)
        assert frobenius(y, expected) <= 1e-6

    @pytest.mark.parametrize("kind", ["public", "private"])
    @pytest.mark.parametrize(
        ("fmt", "dtype"),
        [("nvfp4", jnp.float16), ("nvfp4", jnp.float8_e5m2), ("mxfp4", jnp.float16)],
    )
    def test_formats_types_and_layouts(self, fmt, dtype, kind):
        K = 1024 if kind == "private" else 1056
        y, expected = self.product(5, 64, K, fmt=fmt, dtype=dtype, kind=kind, out=jnp.float32)
        assert frobenius(y, expected) <= 1e-6

    def test_results_are_rounded_once(self):
        wide, _ = self.product(16, 64, 1024, out=jnp.float32)
        y, _ = self.product(16, 64, 1024)
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, wide.astype(jnp.bfloat16))

    def test_nan_stays_with_its_token(self):
        codes, scales, exponents, _ = weights(32, 128, "mxfp4")
        x = tokens(9, 128, jnp.float8_e5m2)
        bad = x.astype(jnp.float32).at[4, 77].set(jnp.nan).astype(x.dtype)

        @jax.jit
        def run(x, codes, scales, exponents):
            one = (jnp.ones(1),)
            return decode_matmul(
                x, codes, scales, exponents, one, implementation=self.implementation
            )

        y, clean = run(bad, codes, scales, exponents), run(x, codes, scales, exponents)
        assert np.isnan(np.asarray(y, np.float32)[4]).all()
        others = np.arange(9) != 4
        np.testing.assert_array_equal(np.asarray(y)[others], np.asarray(clean)[others])


class TestDecodeXla(DecodeMatmul):
    implementation = "xla"


@on_gpu
class TestDecodeTriton(DecodeMatmul):
    implementation = "triton"

    @pytest.mark.parametrize("M", [1, 16, 33, 100])
    @pytest.mark.parametrize("c", [Config(1, 16), Config(2, 8), Config(4, 4)])
    def test_configurations(self, M, c):
        y, expected = self.product(M, 272, 1024, kind="private", config=c, out=jnp.float32)
        assert frobenius(y, expected) <= 1e-6


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6))
def _expand(codes, scales, exponents, implementation, kind, dtype, format):
    return expand(
        codes,
        scales,
        exponents,
        format=format,
        codes_layout=kind,
        dtype=dtype,
        implementation=implementation,
    )


class Expand:
    """Packed weights to FP8 and bfloat16, exactly."""

    implementation: str

    def run(self, codes, scales, exponents, kind, *, dtype=jnp.float8_e4m3fn, format="mxfp4"):
        codes, scales = arranged(codes, scales, kind)
        how = (self.implementation, kind, jnp.dtype(dtype), format)
        return _expand(codes, scales, exponents, *how)

    @pytest.mark.parametrize(("N", "K", "kind"), [(40, 96, "public"), (48, 256, "private")])
    @pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.float8_e5m2, jnp.bfloat16])
    def test_exact(self, N, K, kind, dtype):
        codes, scales, exponents, values = weights(N, K, "mxfp4")
        poison()
        y = self.run(codes, scales, exponents, kind, dtype=dtype)
        assert y.dtype == dtype
        factor = 1 if dtype == jnp.bfloat16 else 2.0 ** int(exponents[0, 1])
        np.testing.assert_array_equal(np.asarray(y, np.float64), values * factor)

    @pytest.mark.parametrize(("N", "K", "kind"), [(40, 96, "public"), (48, 256, "private")])
    def test_nvfp4(self, N, K, kind):
        codes, scales, exponents, values = weights(N, K, "nvfp4")
        y = self.run(codes, scales, exponents, kind, format="nvfp4", dtype=jnp.bfloat16)
        np.testing.assert_array_equal(np.asarray(y, np.float64), values)

    @pytest.mark.parametrize("exponent", [*range(-8, 7), 7, 60, -13, -60])
    def test_every_code_at_every_exponent_and_beyond(self, exponent):
        codes = np.resize(np.array([c for c in range(16) if c != 8], np.uint8), 32)
        packed = jnp.asarray(codes[None, ::2] | (codes[None, 1::2] << 4))
        stored = jnp.full((1, 1), 127 + exponent - 5, jnp.uint8)
        y = self.run(packed, stored, jnp.asarray([0, 5], jnp.int32), "public")
        grid = np.asarray(formats.codes_to_values(packed, "mxfp4"), np.float64)
        kept = 0.0 if exponent < -12 else 2.0 ** min(exponent, 6)  # flushed, or saturated
        np.testing.assert_array_equal(np.asarray(y, np.float64), grid * kept)


class TestExpandXla(Expand):
    implementation = "xla"


@on_gpu
class TestExpandTriton(Expand):
    implementation = "triton"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"codes": jnp.zeros((8, 40), jnp.uint8)}, "multiple of 32"),
        ({"stored": jnp.zeros((8, 3), jnp.uint8)}, "do not fit"),
        ({"activations": jnp.zeros((2, 64))}, "float32"),
        ({"format": "int4"}, "int4"),
        ({"codes_layout": "private"}, "N=8"),
        ({"codes_layout": "best"}, "best"),
    ],
)
def test_bad_input(change, message, unchecked):
    good = {
        "activations": jnp.zeros((2, 64), jnp.float16),
        "codes": jnp.zeros((8, 32), jnp.uint8),
        "stored": jnp.zeros((8, 2), jnp.uint8),
        "exponents": jnp.zeros(2, jnp.int32),
        "global_scales": (jnp.ones(1),),
    }
    with pytest.raises(ValueError, match=message):
        decode_matmul(**{**good, **change}, implementation="xla")


@pytest.mark.parametrize(("name", "message"), [("best", "best"), ("private", "N=8")])
def test_expand_knows_its_layouts(name, message):
    codes, scales = jnp.zeros((8, 32), jnp.uint8), jnp.zeros((8, 2), jnp.uint8)
    with pytest.raises(ValueError, match=message):
        expand(codes, scales, jnp.zeros(2, jnp.int32), codes_layout=name, implementation="xla")


def test_configurations_fill_the_device():
    for N, K in ((4096, 4096), (6144, 4096), (4096, 14336), (14336, 4096)):
        for M in (1, 16, 32, 64):
            c = config(M, N, K)
            assert c.warps <= (16 if M <= 32 else 8)
            assert N // (16 * c.rows) * c.warps >= 132 * 7
