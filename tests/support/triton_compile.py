"""Compiles Triton kernels for a GPU that need not be there, just as the library launches them.

    (launch,) = trace(transform_quantize_codes, ((17, 64), jnp.bfloat16), ((2, 32, 32), ...))
    assert "tcgen05.mma" in ptx(launch, 100)

`trace` puts itself in place of `wush_kernels._triton.call`, so kernel, operand types and constants
are the library's own and cannot drift from it.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")

import jax
import jax.numpy as jnp
import numpy as np

from wush_kernels import _triton

TARGETS = (90, 100, 120)
TYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float8_e5m2": "fp8e5",
    "float8_e4m3fn": "fp8e4nv",
    "int32": "i32",
    "uint32": "u32",
    "uint16": "u16",
    "uint8": "u8",
}


class Launch(NamedTuple):
    """What one `_triton.call` asked for."""

    kernel: Any
    operands: tuple[Any, ...]
    num_warps: int
    num_stages: int
    fp_fusion: bool
    constants: dict[str, Any]


@contextlib.contextmanager
def record() -> Iterator[list[Launch]]:
    """Records launches instead of doing them; their results are zeros."""
    launches: list[Launch] = []

    def call(kernel, *args, out, grid, num_warps, num_stages, fp_fusion=False, **constants):
        del grid
        constants.pop("compute_capability", None)
        shapes = out if isinstance(out, (list, tuple)) else [out]
        launches.append(
            Launch(kernel, (*args, *shapes), num_warps, num_stages, fp_fusion, constants)
        )
        zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
        return zeros if isinstance(out, (list, tuple)) else zeros[0]

    with mock.patch.object(_triton, "call", call), mock.patch.object(_triton, "require"):
        yield launches


def trace(function, *shapes: tuple[tuple[int, ...], Any]) -> list[Launch]:
    """The launches of ``function`` on arrays of the given (shape, dtype), traced and not run."""
    with record() as launches:
        jax.eval_shape(function, *(jax.ShapeDtypeStruct(*s) for s in shapes))
    return launches


def ptx(launch: Launch, target: int) -> str:
    """PTX of the launch's kernel for compute capability target / 10; a cubin is made of it too."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as triton_compile

    names = launch.kernel.arg_names
    types = dict(zip(names, map(_type, launch.operands), strict=False))
    signature = {name: types.get(name, "constexpr") for name in names}
    attributes = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*")
    }
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": launch.fp_fusion,
    }
    source = ASTSource(launch.kernel, signature, constexprs=launch.constants, attrs=attributes)
    # jax_triton empties this variable, with which Triton's own compiler cannot work.
    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.dict(os.environ, {"TRITON_CACHE_DIR": cache}),
    ):
        compiled = triton_compile(source, target=GPUTarget("cuda", target, 32), options=options)
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]


def matrix_instructions(text: str) -> set[str]:
    """The tensor-core instructions in PTX, with their qualifiers."""
    return set(re.findall(r"(?:tcgen05\.mma|wgmma\.mma_async|mma\.sync)\.[\w.:]+", text))


def _type(operand: Any) -> str:
    if isinstance(operand, (int, np.integer)):
        return "i32"
    return "*" + TYPES[jnp.dtype(operand.dtype).name]
