"""Every Triton kernel compiles for sm_90 and sm_100 without a GPU, to the instructions it needs."""

import os

import jax
import jax.numpy as jnp
import pytest

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")
pytest.importorskip("triton", reason="triton is not installed")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile
from wush_kernels import _triton
from wush_kernels.expand import config as expand_config
from wush_kernels.expand import triton_kernel as expand_kernel
from wush_kernels.quantized_matmul import config as matmul_config
from wush_kernels.quantized_matmul import decode_matmul
from wush_kernels.quantized_matmul import triton_kernel as matmul_kernel
from wush_kernels.transform_quantize import config as tq_config
from wush_kernels.transform_quantize import transform_quantize_codes, transform_quantize_folded
from wush_kernels.transform_quantize import triton_kernel as tq_kernel

needs_jax_triton = pytest.mark.skipif(
    _triton.reason_unavailable() is not None, reason=str(_triton.reason_unavailable())
)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    """jax_triton empties this variable, with which Triton's own compiler cannot work."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def ptx(kernel, types, constants, target, num_warps, num_stages):
    signature = {**types, **dict.fromkeys(constants, "constexpr")}
    signature = {name: signature[name] for name in kernel.arg_names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    compiled = triton_compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=attributes),
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "enable_fp_fusion": False},
    )
    return compiled.asm["ptx"]


def tq_constants(M, K, D, x, transform=True):
    c = tq_config.config(M, K, D, 4 if x == "fp32" else 2)
    constants = {
        "K": K,
        "D": D,
        "W": c.width,
        "BLOCK_M": c.block_m,
        "ROW_TILES": c.row_tiles,
        "STAGES": c.stages,
        "T_STRIDE": D * D,
        "TRANSFORM": transform,
        "PRECISION": {"bf16": "bf16", "fp16": "tf32"}.get(x, "tf32x3"),
        "MULTIPLIER": 1.0,
    }
    return constants, c.num_warps, max(c.stages, 1)


@pytest.mark.parametrize("target", [90, 100])
@pytest.mark.parametrize(
    ("M", "D", "x"),
    [
        (4096, 32, "bf16"),
        (4096, 128, "bf16"),
        (16, 32, "bf16"),
        (4096, 16, "fp16"),
        (4096, 64, "fp32"),
    ],
)
def test_transform_quantize(M, D, x, target):
    constants, warps, stages = tq_constants(M, 4096, D, x)
    types = {
        "x_ptr": f"*{x}",
        "t_ptr": "*bf16",
        "shift_ptr": "*i32",
        "M": "i32",
        "out_ptr": "*fp8e5",
    }
    text = ptx(
        tq_kernel.folded_kernel, types, {**constants, "INTERLEAVE": 1}, target, warps, stages
    )
    assert "cvt.rn.satfinite.e5m2x2.f32" in text
    if M >= 64 and target == 90:
        assert "wgmma.mma_async" in text
    elif M >= 64:
        assert "tcgen05.mma" in text or "mma.sync" in text
    else:
        assert "mma.sync" in text
    types = {
        "x_ptr": f"*{x}",
        "t_ptr": "*bf16",
        "M": "i32",
        "codes_ptr": "*u8",
        "scales_ptr": "*u8",
    }
    text = ptx(tq_kernel.codes_kernel, types, constants, target, warps, stages)
    assert "fma.rn.f32" in text


@pytest.mark.parametrize("target", [90, 100])
def test_expand(target):
    c = expand_config.config(4096, 4096)
    types = {
        "codes_ptr": "*u8",
        "scales_ptr": "*u8",
        "table_ptr": "*u32",
        "offset_ptr": "*i32",
        "groups": "i32",
        "out_ptr": "*fp8e4nv",
    }
    text = ptx(expand_kernel.expand_kernel, types, {"BLOCK": c.groups}, target, c.num_warps, 1)
    assert "prmt.b32" in text
    assert "ld.global.v4.b32" in text
    assert "st.global.v2.b64" in text or "st.global.v4.b32" in text


@pytest.mark.parametrize("target", [90, 100])
@pytest.mark.parametrize("M", [1, 17, 64])
def test_decode(M, target):
    c = matmul_config.config(M, 4096, 4096)
    types = {
        "x_ptr": "*fp16",
        "codes_ptr": "*u8",
        "scales_ptr": "*u8",
        "offset_ptr": "*i32",
        "factor_ptr": "*fp32",
        "M": "i32",
        "out_ptr": "*fp32",
    }
    constants = {
        "N": 4096,
        "K": 4096,
        "BLOCK_M": c.block_m,
        "BLOCK_N": c.block_n,
        "BLOCK_K": c.block_k,
        "SPLIT": c.split,
        "STAGES": c.stages,
        "SWAP": c.swap,
    }
    text = ptx(matmul_kernel.decode_kernel, types, constants, target, c.num_warps, c.stages)
    assert "mul.f16x2" in text
    assert "cp.async" in text
    assert "mma.sync" in text or "wgmma" in text or "tcgen05.mma" in text


@needs_jax_triton
@pytest.mark.parametrize("target", [90, 100])
def test_lowering_for_cuda(target):
    K, N = 512, 256
    x = jax.ShapeDtypeStruct((17, K), jnp.bfloat16)
    t = jax.ShapeDtypeStruct((K // 32, 32, 32), jnp.bfloat16)
    codes = jax.ShapeDtypeStruct((N, K // 2), jnp.uint8)
    scales = jax.ShapeDtypeStruct((N, K // 32), jnp.uint8)

    def layer(x, t, codes, scales):
        public = transform_quantize_codes(x, t, compute_capability=target)
        rows = transform_quantize_folded(
            x, t, 1, dtype=jnp.float16, interleave=8, compute_capability=target
        )
        return decode_matmul(rows, codes, scales, 3, 0.5, compute_capability=target), public

    traced = jax.jit(layer).trace(x, t, codes, scales)
    assert traced.lower(lowering_platforms=("cuda",)).as_text().count("triton_kernel_call") >= 3
