"""Results of the Mosaic GPU product against float64: in the interpreter, and on a GPU."""

import dataclasses

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.distance import frobenius
from tests.support.gpu import on_gpu, poison
from wush_kernels.quantized_matmul import mosaic_gpu
from wush_kernels.quantized_matmul.mosaic.config import Config
from wush_kernels.quantized_matmul.mosaic.epilogue import activate
from wush_kernels.quantized_matmul.mosaic_gpu import MIXED_FP8, mosaic_matmul

E5M2, E4M3 = jnp.float8_e5m2, jnp.float8_e4m3fn
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="the interpreter is for CPUs")


def operands(M, N, K, seed=0):
    """MXFP4 values, exact in both FP8 types: E2M1 times a power of two a group of 32."""
    rng = np.random.default_rng(seed)
    grid = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])

    def one(rows):
        values = rng.choice(grid, (rows, K)) * rng.choice([-1, 1], (rows, K))
        powers = np.exp2(rng.integers(-2, 3, (rows, -(-K // 32))))
        return jnp.asarray(values * np.repeat(powers, 32, axis=1)[:, :K], E5M2)

    bias = jnp.asarray(rng.standard_normal(N) * K**0.5, jnp.float32)
    return one(M), one(N), bias


def oracle(a, b, factor, bias=None, activation=None):
    """float64."""
    y = np.asarray(a, np.float64) @ np.asarray(b, np.float64).T * factor
    y = y if bias is None else y + np.asarray(bias, np.float64)
    if activation == "gelu":
        return 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    return y / (1 + np.exp(-y)) if activation == "silu" else y


def test_activations():
    edges = [-jnp.inf, -1e30, -1e4, -88.0, -1e-30, 0.0, 1e-30, 88.0, 1e4, 1e30, jnp.inf, jnp.nan]
    y = jnp.concatenate([jnp.linspace(-12, 12, 2001), jnp.array(edges, jnp.float32)])
    for name, reference in (("gelu", jax.nn.gelu), ("silu", jax.nn.silu)):
        ours, want = np.asarray(activate(y, name)), np.asarray(reference(y))
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(want))
        np.testing.assert_allclose(ours, want, rtol=2e-5, atol=1e-6)
    assert activate(y, None) is y


# ---- interpreter: two blocks of several tiles each, more steps than stages, odd sizes ------------


def interpreted(M, N, c, monkeypatch, capfd, *, bias, K=160, **keywords):
    monkeypatch.setattr(mosaic_gpu, "multiprocessors", lambda: 2)
    a, b, shift = operands(M, N, K)
    shift = shift * 0.02 if bias else None  # activations near their bend
    parameters = dataclasses.replace(mosaic_gpu.interpreter(), detect_races=True)
    y = mosaic_matmul(a, b, 0.002, bias=shift, config=c, interpret=parameters, **keywords)
    jax.block_until_ready(y)
    captured = capfd.readouterr()
    assert "RACE" not in captured.out + captured.err
    assert y.shape == (M, N)
    return frobenius(y, oracle(a, b, 0.002, shift, keywords.get("activation")))


@on_cpu
@pytest.mark.parametrize(
    ("split", "activation", "dtype", "precise", "limit"),
    [
        ("m", None, jnp.float32, False, 1e-6),
        ("n", "gelu", jnp.float32, False, 1e-6),
        ("tile", "silu", jnp.bfloat16, False, 2e-3),
        ("m", None, jnp.float32, True, 1e-6),
    ],
)
def test_interpreted(split, activation, dtype, precise, limit, monkeypatch, capfd):
    c = Config(16, 64 if split == "n" else 32, 2, split, raster="mn"[precise], width=2)
    if split == "tile":  # three K tiles, two of them in one accumulator
        c = dataclasses.replace(c, promote=2)
    error = interpreted(
        20, 40 if split == "m" else 72, c, monkeypatch, capfd,
        K=288 if split == "tile" else 160, bias=activation is not None, activation=activation,
        dtype=dtype, precise=precise,
    )  # fmt: skip
    assert error <= limit


@on_cpu
@pytest.mark.skipif(
    not hasattr(plgpu, "InterpretGPUParams"), reason="this JAX interprets no clusters"
)
@pytest.mark.parametrize("split", ["m", "tile"])
@pytest.mark.parametrize("cluster", ["m", "n"])
def test_interpreted_pair(cluster, split, monkeypatch, capfd):
    c = Config(16, 32, 2, split, cluster)
    error = interpreted(70, 72, c, monkeypatch, capfd, bias=True, dtype=jnp.float32)
    assert error <= 1e-6


# ---- GPU -----------------------------------------------------------------------------------------


@on_gpu
@pytest.mark.parametrize("dtypes", [(E5M2, E5M2), (E5M2, E4M3)], ids=["same", "mixed"])
@pytest.mark.parametrize("M", [1, 17, 100, 1000, 4096])
def test_on_gpu(M, dtypes):
    if dtypes[0] != dtypes[1] and not MIXED_FP8:
        pytest.skip("this JAX multiplies one FP8 type")
    N, K = 1000, 4096
    a, b, bias = operands(M, N, K, seed=M)
    b = b.astype(dtypes[1])
    some = np.unique(np.r_[:M:37, M - 1])
    product = np.asarray(a, np.float64)[some] @ np.asarray(b, np.float64).T
    for precise, dtype, limit in (
        (False, jnp.bfloat16, 2e-3),
        (False, jnp.float32, 1.5e-3),
        (True, jnp.float32, 1e-4),
    ):
        poison()
        run = jax.jit(lambda *v: mosaic_matmul(*v, dtype=dtype, precise=precise))  # noqa: B023
        y = run(a, b, jnp.float32(1 / 9))
        assert frobenius(np.asarray(y)[some], product / 9) <= limit
    run = jax.jit(
        lambda a, b, s: mosaic_matmul(
            a, b, 0.004, bias=s * 0.02, activation="gelu", dtype=jnp.float32, precise=True
        )
    )
    want = oracle(a, b, 0.004, bias * 0.02, "gelu")[some]
    assert frobenius(np.asarray(run(a, b, bias))[some], want) <= 1e-4


@on_gpu
@pytest.mark.parametrize(
    "c",
    [
        Config(128, 256, 4, "m", "m"),
        Config(128, 256, 4, "m", "n"),
        Config(128, 128, 6, "tile"),
        Config(64, 256, 4, "tile", "m"),
        Config(256, 128, 4, "m", "n"),
        Config(64, 128, 6, "n", "n", "n", 4),
    ],
    ids=str,
)
def test_configurations_agree_on_gpu(c):
    a, b, bias = operands(1000, 3000, 1056)
    expected = oracle(a, b, 0.01, bias, None)
    run = jax.jit(lambda a, b, s: mosaic_matmul(a, b, 0.01, bias=s, config=c, dtype=jnp.float32))
    first = run(a, b, bias)
    assert frobenius(first, expected) <= 1.5e-3
    np.testing.assert_array_equal(np.asarray(first), np.asarray(run(a, b, bias)))
