"""Configurations of the Mosaic GPU product: which one a shape gets, and what is refused."""

import types

import jax
import jax.numpy as jnp
import pytest

from wush_kernels.quantized_matmul.mosaic.config import Config, candidates, config
from wush_kernels.quantized_matmul.mosaic_gpu import mosaic_matmul

E5M2 = jnp.float8_e5m2


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
    a = jnp.zeros((64, 128), E5M2)
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
def test_errors(change, message, unchecked):
    keywords = dict(change)
    dtypes = keywords.pop("types", (E5M2, E5M2))
    a = jnp.zeros(keywords.pop("a", (4, 64)), dtypes[0])
    b = jnp.zeros(keywords.pop("b", (64, 64)), dtypes[1])
    if "bias" in keywords:
        keywords["bias"] = jnp.zeros(keywords["bias"])
    with pytest.raises(ValueError, match=message):
        mosaic_matmul(a, b, 1.0, **keywords)
