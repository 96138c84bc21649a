"""The few-token product and the expansion compile for their GPUs, to the instructions they need."""

import jax.numpy as jnp
import pytest

from tests.support.triton_compile import ptx, trace
from wush_kernels.expand import expand
from wush_kernels.quantized_matmul import decode_matmul


def decode_launch(M, N, K, fmt, dtype, kind):
    G = 32 if fmt == "mxfp4" else 16
    (launch,) = trace(
        lambda x, c, s, e, g: decode_matmul(x, c, s, e, (g, g), format=fmt, codes_layout=kind),
        ((M, K), dtype),
        ((N, K // 2), jnp.uint8),
        ((N, K // G), jnp.uint8),
        ((1, 2), jnp.int32),
        ((1, 1), jnp.float32),
    )
    return launch


@pytest.mark.parametrize(
    ("M", "N", "K", "fmt", "dtype", "kind"),
    [
        (1, 4096, 4096, "mxfp4", jnp.float8_e5m2, "private"),
        (16, 14336, 4096, "mxfp4", jnp.float8_e5m2, "public"),
        (64, 4096, 4096, "mxfp4", jnp.float8_e5m2, "private"),
        (17, 1000, 1056, "nvfp4", jnp.float16, "public"),
        (16, 4096, 4096, "nvfp4", jnp.float16, "private"),
    ],
)
def test_decode(M, N, K, fmt, dtype, kind):
    text = ptx(decode_launch(M, N, K, fmt, dtype, kind), 90)
    assert "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32" in text
    assert "ld.global.nc.L1::no_allocate.v4.b32" in text
    assert "mul.f16x2" in text
    assert "st.shared.f32" in text  # the warps' sums


def test_decode_reads_weights_once_and_sixteen_bytes_at_a_time():
    """Two 16-byte loads of codes for 16 rows and 128 columns: 32 lanes x 2 x 16 bytes = 1 KiB."""
    (_, _, words) = decode_launch(8, 4096, 4096, "mxfp4", jnp.float8_e5m2, "private").constants[
        "LOAD"
    ]
    text = decode_launch(8, 4096, 4096, "mxfp4", jnp.float8_e5m2, "private").constants["LOAD"][0]
    assert words == 2 * (4 + 1)
    assert text.count("ld.global.nc.L1::no_allocate.v4.b32") == 2


@pytest.mark.parametrize(
    ("fmt", "dtype", "kind", "instruction"),
    [
        ("mxfp4", jnp.float8_e4m3fn, "private", "cvt.rn.satfinite.e4m3x2.f16x2"),
        ("mxfp4", jnp.float8_e5m2, "public", "cvt.rn.satfinite.e5m2x2.f16x2"),
        ("nvfp4", jnp.bfloat16, "private", "cvt.rn.bf16x2.f32"),
    ],
)
def test_expand(fmt, dtype, kind, instruction):
    G = 32 if fmt == "mxfp4" else 16
    (launch,) = trace(
        lambda c, s, e: expand(c, s, e, format=fmt, codes_layout=kind, dtype=dtype),
        ((256, 256), jnp.uint8),
        ((256, 512 // G), jnp.uint8),
        ((1, 2), jnp.int32),
    )
    text = ptx(launch, 90)
    assert instruction in text
    assert "st.global.v4.b32" in text
