"""Triton functions: x Tᵀ per block of D, of one tile of rows."""

import triton
import triton.language as tl


@triton.jit
def transform_tile(t_ptr, first, D: tl.constexpr, W: tl.constexpr, T_STRIDE: tl.constexpr):
    """[W in, W out] tile of Tᵀ whose first column is column ``first`` of x.

    Where W > D it is block diagonal: the extra products are with zeros and cost less than narrow
    memory accesses would.
    """
    out = tl.arange(0, W)[:, None]
    inner = tl.arange(0, W)[None, :]
    block = first // D + out // D
    pointers = t_ptr + block * T_STRIDE + (out % D) * D + inner % D
    t = tl.load(pointers, mask=out // D == inner // D, other=0.0) if W > D else tl.load(pointers)
    return tl.trans(t)


@triton.jit
def rotate(x, t, TRANSFORM: tl.constexpr, PRECISION: tl.constexpr, NORM: tl.constexpr):
    """float32 [rows, W]: products in bfloat16 or as ``PRECISION`` says, sums in float32.

    NORM is the constant that a Hadamard matrix of signs is to be multiplied with.
    """
    if TRANSFORM:
        if PRECISION == "bf16":
            y = tl.dot(x, t, out_dtype=tl.float32)
        else:
            y = tl.dot(
                x.to(tl.float32), t.to(tl.float32), input_precision=PRECISION, out_dtype=tl.float32
            )
        if NORM != 1.0:
            y = y * NORM
    else:
        y = x.to(tl.float32)
    return y
