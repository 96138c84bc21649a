"""Triton kernel: packed 4-bit codes times packed 4-bit codes, scaled by `tl.dot_scaled`.

Glossary: A [M, K/2] and B [N, K/2] hold two E2M1 codes a byte, low nibble = even k, both K-major;
GROUP values along K share a scale. A program owns BLOCK_M x BLOCK_N outputs; programs are numbered
so that SUPER row tiles go through the columns together and share B's tiles in the L2.

Beyond M, N and K codes and scales are read as zeros: scale byte 0 is 2^-127 or zero, never NaN.
"""

import triton
import triton.language as tl


@triton.jit
def block_scaled_kernel(
    a_ptr,
    a_scale_ptr,
    b_ptr,
    b_scale_ptr,
    factor_ptr,
    M,
    out_ptr,
    N: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    SUPER: tl.constexpr,
):
    """out [M, N] = (A * scales) (B * scales)ᵀ * factor, summed in float32."""
    BYTES: tl.constexpr = BLOCK_K // 2
    SCALES: tl.constexpr = BLOCK_K // GROUP
    rows = tl.cdiv(M, BLOCK_M)
    columns: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    super_first = tl.program_id(0) // (SUPER * columns) * SUPER
    super_rows = tl.minimum(rows - super_first, SUPER)
    within = tl.program_id(0) % (SUPER * columns)
    m = (super_first + within % super_rows) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = within // super_rows * BLOCK_N + tl.arange(0, BLOCK_N)
    m_mask, n_mask = m < M, n < N
    wide_m, wide_n = m.to(tl.int64), n.to(tl.int64)
    byte = tl.arange(0, BYTES)
    group = tl.arange(0, SCALES)
    a_ptrs = a_ptr + wide_m[:, None] * (K // 2) + byte[None, :]
    b_ptrs = b_ptr + wide_n[None, :] * (K // 2) + byte[:, None]
    a_scale_ptrs = a_scale_ptr + wide_m[:, None] * (K // GROUP) + group[None, :]
    b_scale_ptrs = b_scale_ptr + wide_n[:, None] * (K // GROUP) + group[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for i in range(tl.cdiv(K, BLOCK_K)):
        a_mask, b_mask = m_mask[:, None], n_mask[None, :]
        a_scale_mask, b_scale_mask = m_mask[:, None], n_mask[:, None]
        if K % BLOCK_K != 0:
            byte_mask = i * BYTES + byte < K // 2
            group_mask = i * SCALES + group < K // GROUP
            a_mask, b_mask = a_mask & byte_mask[None, :], b_mask & byte_mask[:, None]
            a_scale_mask = a_scale_mask & group_mask[None, :]
            b_scale_mask = b_scale_mask & group_mask[None, :]
        a = tl.load(a_ptrs + i * BYTES, mask=a_mask, other=0)
        b = tl.load(b_ptrs + i * BYTES, mask=b_mask, other=0)
        a_scale = tl.load(a_scale_ptrs + i * SCALES, mask=a_scale_mask, other=0)
        b_scale = tl.load(b_scale_ptrs + i * SCALES, mask=b_scale_mask, other=0)
        if GROUP == 16:  # E4M3, told from E8M0 by the type
            a_scale = a_scale.to(tl.float8e4nv, bitcast=True)
            b_scale = b_scale.to(tl.float8e4nv, bitcast=True)
        acc = tl.dot_scaled(a, a_scale, "e2m1", b, b_scale, "e2m1", acc)
    acc = acc * tl.load(factor_ptr)
    target = out_ptr + wide_m[:, None] * N + n[None, :]
    tl.store(target, acc.to(out_ptr.dtype.element_ty), mask=m_mask[:, None] & n_mask[None, :])
