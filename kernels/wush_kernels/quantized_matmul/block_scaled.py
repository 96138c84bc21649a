"""`block_scaled_matmul`: the product of two packed 4-bit arrays, on the units that read them so.

Native on Blackwell (sm_100: tcgen05, sm_120: mma.sync, both with block scales). Compiled for it and
not run there. Elsewhere Triton widens both sides to bfloat16, which is exact and slower than a
plain bfloat16 product: a baseline.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from wush_jax.formats import Format, Quantized, dequantize, get_format
from wush_kernels import _triton

OLDEST_WIDENING_NVFP4 = (3, 9)  # 3.6 fails in its compiler; versions between were not tried


@dataclasses.dataclass(frozen=True)
class BlockScaledConfig:
    """BLOCK_M x BLOCK_N outputs a program, K in steps of BLOCK_K, SUPER row tiles together."""

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    stages: int
    super_rows: int = 8


def config(M: int, N: int, K: int, compute_capability: int) -> BlockScaledConfig:
    """The default configuration; none was tuned.

    * sm_100: tensor memory has 128 rows, so tiles have too, however few the tokens.
    * sm_120: 99 KB of shared memory a multiprocessor, so shorter steps along K.
    * Otherwise the widened operands go through registers: 8 warps.
    """
    del N, K
    if compute_capability // 10 == 10:
        return BlockScaledConfig(128, 128, 256, 4, 3)
    if M <= 64:
        return BlockScaledConfig(16 if M <= 16 else 64, 64, 256, 4, 3)
    return BlockScaledConfig(128, 128, 128, 4 if compute_capability >= 120 else 8, 3)


def block_scaled_matmul(
    a_codes: UInt8[Array, "M K_2"],
    a_scales: UInt8[Array, "M K_G"],
    b_codes: UInt8[Array, "N K_2"],
    b_scales: UInt8[Array, "N K_G"],
    factor: Float[Array, " 1"],
    *,
    format: str | Format = "mxfp4",
    dtype: DTypeLike = jnp.bfloat16,
    implementation: str = "triton",
    config: BlockScaledConfig | None = None,
    compute_capability: int | None = None,
) -> Float[Array, "M N"]:
    """(a * scales) (b * scales)ᵀ * factor, in public packed codes; float32 sums, then ``dtype``.

    A NaN scale makes NaN of its row (of a) or column (of b) and of nothing else.

    Args:
      a_codes, b_codes: two E2M1 codes a byte, low nibble = even k; K a multiple of 32, N of 8.
      a_scales, b_scales: E8M0 bytes with G = 32 ("mxfp4") or E4M3 bytes with G = 16 ("nvfp4").
      factor: float32, the product of the global scales.
      format: of both sides; its rule does not matter.
      implementation: "triton" or "xla".
      config: None for the default of the shape.
      compute_capability: None asks the driver; 90, 100, 120, ... lowers without a GPU.

    Raises:
      ValueError: shapes or dtypes do not fit.
      NotImplementedError: another format, no Triton or no GPU, or a Triton that cannot compile
        NVFP4 for this GPU.
    """
    fmt = get_format(format)
    if fmt.name not in ("mxfp4", "nvfp4"):
        raise NotImplementedError(f"block-scaled units read mxfp4 and nvfp4, not {fmt}")
    M, N, K = _check(a_codes, a_scales, b_codes, b_scales, factor, fmt)
    if implementation == "xla":
        return _reference(a_codes, a_scales, b_codes, b_scales, factor, fmt, dtype)
    if implementation != "triton":
        raise ValueError(f"unknown implementation {implementation!r}; there are triton, xla")
    _triton.require()
    from wush_kernels.quantized_matmul.block_scaled_kernel import block_scaled_kernel

    capability = compute_capability or _capability()
    _check_triton(fmt, capability)
    c = config or default_config(M, N, K, capability)
    return _triton.call(
        block_scaled_kernel,
        a_codes,
        a_scales,
        b_codes,
        b_scales,
        factor,
        M,
        out=jax.ShapeDtypeStruct((M, N), dtype),
        grid=(-(-M // c.block_m) * -(-N // c.block_n),),
        num_warps=c.num_warps,
        num_stages=c.stages,
        compute_capability=compute_capability,
        N=N,
        K=K,
        GROUP=fmt.group_size,
        BLOCK_M=c.block_m,
        BLOCK_N=c.block_n,
        BLOCK_K=c.block_k,
        SUPER=c.super_rows,
    )


default_config = config


def _check(
    a: Array, a_scales: Array, b: Array, b_scales: Array, factor: Array, fmt: Format
) -> tuple[int, int, int]:
    arrays = {"a_codes": a, "a_scales": a_scales, "b_codes": b, "b_scales": b_scales}
    for name, array in arrays.items():
        if array.dtype != jnp.uint8 or array.ndim != 2:
            raise ValueError(f"{name} is uint8 with two axes, not {array.dtype} {array.shape}")
    (M, half), N = a.shape, b.shape[0]
    K, G = 2 * half, fmt.group_size
    if K % 32 or K == 0 or N % 8 or b.shape[1] != half:
        raise ValueError(
            f"a_codes [M, K/2] and b_codes [N, K/2] share K, a multiple of 32, and N is a multiple "
            f"of 8; they are {a.shape} and {b.shape}"
        )
    if a_scales.shape != (M, K // G) or b_scales.shape != (N, K // G):
        raise ValueError(
            f"{fmt} with these codes takes scales {(M, K // G)} and {(N, K // G)}, "
            f"not {a_scales.shape} and {b_scales.shape}"
        )
    if factor.shape != (1,) or factor.dtype != jnp.float32:
        raise ValueError(f"factor is float32 (1,), not {factor.dtype} {factor.shape}")
    return M, N, K


def _capability() -> int:
    try:
        device = jax.devices("cuda")[0]
    except RuntimeError as error:
        raise NotImplementedError(
            f"no CUDA GPU ({error}); give compute_capability to lower for one"
        ) from error
    major, minor = device.compute_capability.split(".")
    return 10 * int(major) + int(minor)


def _check_triton(fmt: Format, capability: int) -> None:
    import triton

    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if fmt.name == "nvfp4" and capability < 100 and version < OLDEST_WIDENING_NVFP4:
        raise NotImplementedError(
            f"Triton {triton.__version__} cannot widen E4M3 group scales for sm_{capability}; "
            f"Triton 3.9 can"
        )


def _reference(
    a: Array,
    a_scales: Array,
    b: Array,
    b_scales: Array,
    factor: Array,
    fmt: Format,
    dtype: DTypeLike,
) -> Array:
    one = jnp.float32(1)
    y = jnp.einsum(
        "mk,nk->mn",
        dequantize(Quantized(a, a_scales, one, fmt)),
        dequantize(Quantized(b, b_scales, one, fmt)),
        precision="highest",
        preferred_element_type=jnp.float32,
    )
    return (y * factor.reshape(())).astype(dtype)
