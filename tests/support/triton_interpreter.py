"""Runs kernels in Triton's interpreter, in NumPy on the CPU, behind `wush_kernels._triton.call`.

Triton decides at its import, from the environment, whether functions are compiled or interpreted,
so this takes a process of its own, see `test_kernels_interpreter`. The interpreter wants
torch tensors but only uses the few methods that `_Buffer` has. Its limits, where they matter here:

* it multiplies bfloat16 as integers, so the kernels are told that x is float16 (`PRECISION`);
* it has no inline assembly, truncates float32 to bfloat16 and rounds halves away in E5M2.
"""

from __future__ import annotations

import os
from typing import Any

import jax.numpy as jnp
import numpy as np

from tests.support.triton_compile import TYPES

ENVIRONMENT = {"TRITON_INTERPRET": "1", "TRITON_DEFAULT_FP_FUSION": "0"}
ACTIVE = os.environ.get("TRITON_INTERPRET") == "1"


class _Buffer:
    """A NumPy array with what the interpreter asks of a torch tensor and of its storage."""

    def __init__(self, array: np.ndarray):
        self.array = array
        self.dtype = TYPES[array.dtype.name]

    def data_ptr(self) -> int:
        return self.array.ctypes.data

    def untyped_storage(self) -> _Buffer:
        return self

    def cpu(self) -> _Buffer:
        return self

    def new_empty(self, *_: Any, **__: Any) -> _Buffer:
        return self

    def set_(self, *_: Any) -> None:
        """Already the storage that it is set to."""

    def copy_(self, other: _Buffer) -> None:
        assert other is self

    def storage_offset(self) -> int:
        return 0

    def size(self) -> tuple[int, ...]:
        return self.array.shape

    def stride(self) -> tuple[int, ...]:
        return self.array.strides


def call(kernel, *args, out, grid, num_warps, num_stages, **constants):
    """`_triton.call`, interpreted; the outputs hold 0xFF bytes until the kernel writes them."""
    del num_warps, num_stages
    for option in ("fp_fusion", "compute_capability"):
        constants.pop(option, None)
    if constants.get("PRECISION") == "bf16":
        constants["PRECISION"] = "tf32"
    buffers = [_Buffer(np.array(a)) if hasattr(a, "shape") else a for a in args]
    outputs = []
    for shape in out if isinstance(out, (list, tuple)) else [out]:
        size = int(np.prod(shape.shape)) * np.dtype(shape.dtype).itemsize
        outputs.append(np.full(size, 0xFF, np.uint8).view(shape.dtype).reshape(shape.shape))
    with np.errstate(all="ignore"):
        kernel[grid](*buffers, *map(_Buffer, outputs), **constants)
    results = [jnp.asarray(o) for o in outputs]
    return results if isinstance(out, (list, tuple)) else results[0]


def has_dot_scaled() -> bool:
    """Whether this Triton interprets `tl.dot_scaled`."""
    from triton.runtime.interpreter import InterpreterBuilder

    return hasattr(InterpreterBuilder, "create_dot_scaled")


def patch(monkeypatch):
    """Every kernel launch of a test goes to the interpreter."""
    from triton.runtime import interpreter

    from wush_kernels import _triton

    def fma(self, x, y, z):
        """With one rounding, as Triton >= 3.9 does it; products and sums fit float64 here."""
        wide = [np.asarray(v.data, np.float64) for v in (x, y, z)]
        return interpreter.TensorHandle((wide[0] * wide[1] + wide[2]).astype(np.float32), x.dtype)

    def scale_values(handle, compute_type):
        """Group scales of `tl.dot_scaled`; Triton 3.9 reads E4M3 as if it were E8M0."""
        if handle.dtype.is_fp8():
            return handle.data.view(jnp.float8_e4m3fn).astype(np.float32)
        return e8m0(handle, compute_type)

    e8m0: Any = getattr(interpreter, "_dot_scaled_scale_to_f32", None)
    if e8m0 is not None:
        monkeypatch.setattr(interpreter, "_dot_scaled_scale_to_f32", scale_values)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_fma", fma)
    monkeypatch.setattr(_triton, "call", call)
    monkeypatch.setattr(_triton, "require", lambda: None)
