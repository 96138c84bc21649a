"""The Mosaic GPU product lowered for CUDA, on any machine: instructions, clusters, padding."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from wush_kernels.quantized_matmul.mosaic.config import Config
from wush_kernels.quantized_matmul.mosaic_gpu import MIXED_FP8, mosaic_matmul

E5M2, E4M3 = jnp.float8_e5m2, jnp.float8_e4m3fn


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
