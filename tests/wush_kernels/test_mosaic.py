"""The Mosaic GPU product: in the interpreter, lowered for CUDA, and (marked gpu) on a GPU."""

import dataclasses
import types

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest

from wush_kernels.quantized_matmul import mosaic_gpu
from wush_kernels.quantized_matmul.mosaic.config import Config, candidates, config
from wush_kernels.quantized_matmul.mosaic.epilogue import activate
from wush_kernels.quantized_matmul.mosaic_gpu import MIXED_FP8, mosaic_matmul

E5M2, E4M3 = jnp.float8_e5m2, jnp.float8_e4m3fn
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="no CUDA GPU")
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


def frobenius(y, expected):
    return np.linalg.norm(np.asarray(y, np.float64) - expected) / np.linalg.norm(expected)


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


# ---- lowering ------------------------------------------------------------------------------------


def lowered(M, N, K, dtypes=(E5M2, E5M2), **keywords):
    """Text of the program for CUDA; the Mosaic module's strings are legible in it."""
    return traced(M, N, K, dtypes, **keywords).lower(lowering_platforms=("cuda",)).as_text()


def traced(M, N, K, dtypes=(E5M2, E5M2), **keywords):
    args = [
        jax.ShapeDtypeStruct((M, K), dtypes[0]),
        jax.ShapeDtypeStruct((N, K), dtypes[1]),
        jax.ShapeDtypeStruct((), jnp.float32),
        jax.ShapeDtypeStruct((N,), jnp.bfloat16),
    ]
    return jax.jit(lambda a, b, f, s: mosaic_matmul(a, b, f, bias=s, **keywords)).trace(*args)


def test_lowered_fast():
    text = lowered(4096, 14336, 4096, activation="gelu")
    assert "mosaic_gpu" in text
    assert "wgmma.mma_async.sync.aligned.m64n256k32.f32.e5m2.e5m2" in text
    assert "stablehlo.pad" not in text
    assert "tensor<4096x14336xbf16>" in text


def test_lowered_precise():
    text = lowered(4096, 14336, 4096, precise=True, dtype=jnp.float32)
    assert "wgmma.mma_async.sync.aligned.m64n192k32.f32.e5m2.e5m2" in text
    assert "tensor<4096x14336xf32>" in text


def test_promotion():
    """Fast: a product always in flight. Precise: one accumulator a step. Or segments, a rest."""
    c = Config(128, 128, 4)
    fast = str(traced(256, 256, 512, config=c).jaxpr)
    assert fast.count("wgmma_ref ") == 2
    assert fast.count("wgmma_wait") == 1
    precise = str(traced(256, 256, 512, config=c, precise=True).jaxpr)
    assert precise.count("wgmma_ref ") == 1
    assert precise.count("wgmma_wait") == 0
    segments = str(traced(256, 256, 640, config=dataclasses.replace(c, promote=4)).jaxpr)
    assert segments.count("wgmma_ref ") == 3


@pytest.mark.parametrize("cluster", ["m", "n"])
def test_lowered_pair(cluster):
    text = lowered(256, 512, 256, config=Config(128, 128, 4, "tile", cluster))
    assert "mapa.shared::cluster" in text  # consumed tiles are reported to both blocks
    assert "wgmma.mma_async.sync.aligned.m64n128k32.f32.e5m2.e5m2" in text


def test_lowered_odd_sizes_are_padded():
    text = lowered(17, 1000, 160, dtypes=(E4M3, E4M3))
    assert "tensor<24x256xf8E4M3FN>" in text
    assert "tensor<1024x256xf8E4M3FN>" in text
    assert "-> tensor<24x1024xbf16>" in text
    assert "f32.e4m3.e4m3" in text


def test_mixed_types():
    if MIXED_FP8:
        assert "f32.e5m2.e4m3" in lowered(128, 256, 256, dtypes=(E5M2, E4M3))
    else:
        with pytest.raises(NotImplementedError, match=r"expand the weights to float8_e5m2"):
            lowered(128, 256, 256, dtypes=(E5M2, E4M3))


# ---- epilogue, configurations, errors ------------------------------------------------------------


def test_activations():
    edges = [-jnp.inf, -1e30, -1e4, -88.0, -1e-30, 0.0, 1e-30, 88.0, 1e4, 1e30, jnp.inf, jnp.nan]
    y = jnp.concatenate([jnp.linspace(-12, 12, 2001), jnp.array(edges, jnp.float32)])
    for name, reference in (("gelu", jax.nn.gelu), ("silu", jax.nn.silu)):
        ours, want = np.asarray(activate(y, name)), np.asarray(reference(y))
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(want))
        np.testing.assert_allclose(ours, want, rtol=2e-5, atol=1e-6)
    assert activate(y, None) is y


@pytest.mark.parametrize("precise", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_configurations_can_be_built(itemsize, precise):
    shapes = [(14336, 4096), (4096, 14336), (6144, 4096), (4096, 4096), (64, 128), (1024, 1024)]
    for M in (1, 17, 64, 128, 256, 512, 1000, 1024, 4096, 16384):
        for N, K in shapes:
            c = config(M, N, K, itemsize=itemsize, precise=precise)
            c.check(itemsize, precise)
            assert c == config(M, N, K, itemsize=itemsize, precise=precise)
    for c in candidates(itemsize, precise):
        c.check(itemsize, precise)
        assert c.stages >= 3


@pytest.mark.parametrize("M", [64, 128, 256, 512])
@pytest.mark.parametrize(("N", "K"), [(14336, 4096), (28672, 4096), (4096, 14336), (6144, 4096)])
def test_few_tokens_fill_the_chip(M, N, K):
    c = config(M, N, K)
    tiles = -(-M // c.tile_m) * -(-N // c.tile_n)
    waves = -(-tiles // 132)
    assert tiles / (132 * waves) >= (0.72 if M > 64 else 0.48)
    assert c.tile_m <= max(64, M)


def test_large_products_take_large_tiles():
    c, p = config(4096, 14336, 4096), config(4096, 14336, 4096, precise=True)
    assert (c.tile_m, c.tile_n, c.stages) == (128, 256, 4)
    assert (p.tile_m, p.tile_n) == (128, 192)


def test_other_gpus_are_refused(monkeypatch):
    ampere = types.SimpleNamespace(compute_capability="8.0", core_count=108)
    a = operands(64, 8, 128)[0]
    monkeypatch.setattr(jax, "devices", lambda *_: [ampere])
    with pytest.raises(NotImplementedError, match=r"not 8\.0"):
        mosaic_matmul(a, a, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"b": (64, 96)}, "a is .M, K. and b .N, K."),
        ({"a": (4, 40), "b": (64, 40)}, "K of 32"),
        ({"b": (60, 64)}, "N a multiple of 8"),
        ({"types": (jnp.bfloat16, E5M2)}, "not bfloat16 and float8_e5m2"),
        ({"bias": (8,)}, r"bias is \[N\] = \[64\]"),
        ({"activation": "relu"}, "not 'relu'"),
        ({"dtype": jnp.float16}, "not float16"),
        ({"config": Config(128, 256, 5)}, "bytes of shared memory"),
        ({"config": Config(256, 256, 2)}, "fit in registers"),
        ({"config": Config(128, 256, 4), "precise": True}, "promoted=True, fit in registers"),
        ({"config": Config(128, 256, 4, promote=8)}, "promoted=True, fit in registers"),
        ({"config": Config(96, 128, 4)}, "64 or 128 rows"),
        ({"config": Config(128, 40, 4)}, "multiple of 32 columns"),
        ({"config": Config(128, 128, 4, "k")}, "split is"),
    ],
)
def test_errors(change, message):
    keywords = dict(change)
    dtypes = keywords.pop("types", (E5M2, E5M2))
    a = jnp.zeros(keywords.pop("a", (4, 64)), dtypes[0])
    b = jnp.zeros(keywords.pop("b", (64, 64)), dtypes[1])
    if "bias" in keywords:
        keywords["bias"] = jnp.zeros(keywords["bias"])
    with pytest.raises(ValueError, match=message):
        mosaic_matmul(a, b, 1.0, **keywords)


# ---- GPU -----------------------------------------------------------------------------------------


@pytest.mark.gpu
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
        jax.block_until_ready([jnp.full(1 << 24, 0xFF, jnp.uint8) for _ in range(4)])  # NaN bytes
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


@pytest.mark.gpu
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
