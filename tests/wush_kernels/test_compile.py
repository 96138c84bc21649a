"""The kernels compile without a GPU for sm_90, sm_100 and sm_120, to the instructions they need."""

import functools

import jax.numpy as jnp
import pytest

from tests.support.triton_compile import TARGETS, matrix_instructions, ptx, trace
from wush_kernels.expand import expand
from wush_kernels.quantized_matmul.block_scaled import block_scaled_matmul
from wush_kernels.transform_quantize import (
    transform_quantize_codes,
    transform_quantize_folded,
    transform_quantize_values,
)

triton = pytest.importorskip("triton", reason="triton is not installed")
K = 4096
CODES, FOLDED, VALUES = (
    transform_quantize_codes,
    transform_quantize_folded,
    transform_quantize_values,
)
BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32
# function, M, D, dtype of x, options, targets
TRANSFORM_QUANTIZE = [
    (FOLDED, 4096, 32, BF16, {"multiplier": 8 / 9}, TARGETS),
    (FOLDED, 4096, 128, BF16, {}, (90,)),
    (FOLDED, 16, 32, BF16, {"rows": 16}, (90,)),
    (CODES, 1000, 32, F32, {"format": "nvfp4"}, (90,)),
    (CODES, 1000, 32, BF16, {"format": "nvfp4"}, (100, 120)),
    (CODES, 1000, 64, BF16, {"format": "mxfp4/ocp", "rows": 1008}, (100,)),
    (VALUES, 1000, 16, F16, {"format": "nvfp4", "shift": -1}, (90,)),
    (VALUES, 16, 128, BF16, {"format": None}, (90, 120)),
]
# The instruction that multiplies packed codes; sm_90 has none, and multiplies bfloat16.
BLOCK_SCALED = {
    (90, "mxfp4"): "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
    (90, "nvfp4"): "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16",
    (100, "mxfp4"): "tcgen05.mma.cta_group::1.kind::mxf4.block_scale",
    (100, "nvfp4"): "tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale",
    (120, "mxfp4"): "kind::mxf4nvf4.block_scale.scale_vec::2X.f32.e2m1.e2m1.f32.ue8m0",
    (120, "nvfp4"): "kind::mxf4nvf4.block_scale.scale_vec::4X.f32.e2m1.e2m1.f32.ue4m3",
}


@pytest.mark.parametrize(
    ("case", "target"),
    [(case, target) for case in TRANSFORM_QUANTIZE for target in case[-1]],
    ids=lambda v: str(v) if isinstance(v, int) else f"{v[0].__name__[19:]}-{v[1]}-{v[2]}",
)
def test_transform_quantize(case, target):
    function, M, D, dtype, options, _ = case
    x, t = ((M, K), dtype), ((K // D, D, D), jnp.bfloat16)
    (launch,) = trace(functools.partial(function, **options), x, t)
    text = ptx(launch, target)
    found = matrix_instructions(text)
    assert len(found) >= 1
    if target == 90 and M >= 64:
        assert all(name.startswith("wgmma.mma_async") for name in found)
    if dtype == jnp.bfloat16:
        assert all("bf16" in name or "kind::f16" in name for name in found)
    if function is not VALUES or options["format"]:
        assert text.count("fma.rn.f32") >= 16  # the rounding
    if function is FOLDED:
        assert "cvt.rn.satfinite.e5m2x2.f32" in text
    assert "div.rn.f32" not in text  # a subroutine


@pytest.mark.parametrize(
    ("target", "name", "dtype"),
    [*((target, "mxfp4", jnp.float8_e4m3fn) for target in TARGETS), (90, "nvfp4", jnp.bfloat16)],
)
def test_expand(target, name, dtype):
    shapes = [((4096, K // n), jnp.uint8) for n in (2, 32 if name == "mxfp4" else 16)]
    run = functools.partial(expand, format=name, dtype=dtype)
    (launch,) = trace(run, *shapes, ((2,), jnp.int32))
    text = ptx(launch, target)
    assert "mul.f16x2" in text
    assert ("cvt.rn.bf16x2.f32" if name == "nvfp4" else "cvt.rn.satfinite.e4m3x2") in text
    assert "st.global.v4.b32" in text


@pytest.mark.parametrize(("target", "name"), BLOCK_SCALED)
def test_block_scaled(target, name):
    N, G = 1024, 32 if name == "mxfp4" else 16
    run = functools.partial(block_scaled_matmul, format=name, compute_capability=target)
    sides = [(((n, K // 2), jnp.uint8), ((n, K // G), jnp.uint8)) for n in (1000, N)]
    shapes = (*sides[0], *sides[1], ((1,), jnp.float32))
    if (target, name) == (90, "nvfp4") and triton.__version__.startswith("3.6."):
        with pytest.raises(NotImplementedError, match="cannot widen E4M3"):
            trace(run, *shapes)
        return
    (launch,) = trace(run, *shapes)
    text = ptx(launch, target)
    found = matrix_instructions(text)
    assert found
    assert all(BLOCK_SCALED[target, name] in instruction for instruction in found)
    assert "cp.async" in text  # tiles are loaded ahead


@pytest.mark.parametrize(("target", "name"), [(100, "nvfp4"), (120, "mxfp4")])
def test_block_scaled_with_tails_and_few_tokens(target, name):
    G = 32 if name == "mxfp4" else 16
    run = functools.partial(block_scaled_matmul, format=name, compute_capability=target)
    sides = [(((n, 48), jnp.uint8), ((n, 96 // G), jnp.uint8)) for n in (3, 8)]
    (launch,) = trace(run, *sides[0], *sides[1], ((1,), jnp.float32))
    assert all("block_scale" in name for name in matrix_instructions(ptx(launch, target)))
