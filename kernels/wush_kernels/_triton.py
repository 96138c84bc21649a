"""The one door to Triton: everything here imports lazily, so that the package loads anywhere.

`call` launches a kernel from JAX, under jit. Differences between jax-triton's versions stay here.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Sequence
from typing import Any

import jax

# Rounding code must not depend on a default; `call` also passes the choice for every kernel.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")


@functools.cache
def reason_unavailable() -> str | None:
    """Why Triton kernels cannot be traced in this process, or None if they can."""
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error}); pip install 'wush-jax[gpu]'"
    try:
        import jax_triton
    except ImportError as error:
        return f"jax_triton cannot be imported ({error}); pip install 'wush-jax[gpu]'"
    del triton, jax_triton
    return None


def require() -> None:
    """Raises NotImplementedError, with the reason, where Triton kernels cannot be traced."""
    reason = reason_unavailable()
    if reason is not None:
        raise NotImplementedError(reason)


@functools.cache
def _output_keyword() -> str:
    import jax_triton

    parameters = inspect.signature(jax_triton.triton_call).parameters
    return "out_shape" if "out_shape" in parameters else "out_type"


def call(
    kernel: Any,
    *args: Any,
    out: jax.ShapeDtypeStruct | Sequence[jax.ShapeDtypeStruct],
    grid: tuple[int] | tuple[int, int] | tuple[int, int, int],
    num_warps: int,
    num_stages: int,
    fp_fusion: bool = False,
    compute_capability: int | None = None,
    **constants: Any,
) -> Any:
    """Launches ``kernel(*args, *outputs, **constants)``.

    Args:
      kernel: a ``triton.jit`` function whose parameters are args, then outputs, then constexprs.
      args: arrays, or Python ints for run-time scalars.
      out: shapes and dtypes of the outputs.
      fp_fusion: whether a product and a sum may be contracted into one rounding.
      compute_capability: None asks the driver; 90, 100, ... lowers without a GPU.
      constants: the kernel's constexpr parameters.

    Raises:
      NotImplementedError: Triton or jax-triton is missing.
    """
    require()
    import jax_triton

    if compute_capability is not None:
        constants["compute_capability"] = compute_capability
    return jax_triton.triton_call(
        *args,
        kernel=kernel,
        grid=grid,
        num_warps=num_warps,
        num_stages=num_stages,
        enable_fp_fusion=fp_fusion,
        **{_output_keyword(): out},
        **constants,
    )
