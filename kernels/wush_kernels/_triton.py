"""The one door to Triton: everything here imports lazily, so that the package loads anywhere.

`call` launches a kernel from JAX, under jit. Differences between jax-triton's versions stay here.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import jax

# Rounding code must not depend on a default; `call` also passes the choice for every kernel.
os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "0")

_INSTALL = "pip install 'wush-jax[gpu]'"


@functools.cache
def reason_unavailable() -> str | None:
    """Why Triton kernels cannot be traced in this process, or None if they can."""
    try:
        import triton
    except ImportError as error:
        return f"triton cannot be imported ({error}); {_INSTALL}"
    try:
        import jax_triton
        from jax_triton import triton_lib
        from jaxlib import gpu_triton, version
    except ImportError as error:
        return f"jax_triton cannot be imported ({error}); {_INSTALL}"
    if not hasattr(gpu_triton, "TritonKernelCall"):
        return f"jaxlib {version.__version__} has no CUDA plugin; {_INSTALL}"
    pair = f"jax-triton {jax_triton.__version__} and triton {triton.__version__}"
    try:
        from triton.backends.nvidia.compiler import CUDABackend
    except ImportError as error:
        return f"triton {triton.__version__} has no NVIDIA backend ({error}); {_INSTALL}"
    # jax-triton imports without a Triton it can use, and puts a stub in the backend's place.
    if triton_lib.cb.CUDABackend is not CUDABackend:
        needs = [r for r in metadata.requires("jax-triton") or () if r.startswith("triton")]
        return f"{pair} do not work together: the former needs {' '.join(needs)}"
    return _reason_unreadable(pair)


def _reason_unreadable(pair: str) -> str | None:
    """Why the PTX of this pair cannot be assembled, or None: see `ptx_version`."""
    if "backend_options" in _parameters():
        return None
    from triton.backends.nvidia.compiler import get_ptxas, ptx_get_version

    written, read = ptx_get_version(get_ptxas(90).version), ptx_version()
    if read is None or written <= read:
        return None
    return (
        f"{pair} write PTX {_dotted(written)}, and the ptxas that JAX finds reads up to "
        f"{_dotted(read)}: install triton < 3.7, or jax-triton >= 0.4 (Python >= 3.12)"
    )


def require() -> None:
    """Raises NotImplementedError, with the reason, where Triton kernels cannot be traced."""
    reason = reason_unavailable()
    if reason is not None:
        raise NotImplementedError(reason)


@functools.cache
def ptx_version() -> int | None:
    """The newest PTX that can be assembled here, 90 for 9.0; None where there is no ptxas.

    Triton writes PTX for the ptxas in its own wheel. jax-triton hands that PTX to JAX's CUDA
    plugin, which assembles it with the first ptxas of $PATH, /usr/local/cuda and NVIDIA's wheels.
    The plugin's Mosaic GPU bindings look for it in the same way, and say what it reads.
    """
    try:
        from jax._src.lib import mosaic_gpu as plugin
    except ImportError:  # no CUDA plugin
        return None
    bindings: Any = plugin
    try:
        return bindings._mosaic_gpu_ext._get_ptxas_isa_version()
    except RuntimeError:  # no ptxas: a program for CUDA can be lowered here, and run elsewhere
        return None


def _dotted(version: int) -> str:
    return f"{version // 10}.{version % 10}"


@functools.cache
def _parameters() -> frozenset[str]:
    """Names of the parameters of this jax-triton's `triton_call`."""
    import jax_triton

    return frozenset(inspect.signature(jax_triton.triton_call).parameters)


def _version_keywords(out: Any, fp_fusion: bool) -> dict[str, Any]:
    """``out`` and compiler options as this jax-triton takes them: 0.3, or 0.4 and later."""
    keywords: dict[str, Any] = {"out_type" if "out_type" in _parameters() else "out_shape": out}
    if "backend_options" not in _parameters():
        return keywords | {"enable_fp_fusion": fp_fusion}
    options: dict[str, Any] = {"enable_fp_fusion": fp_fusion}
    if ptx_version() is not None:
        options["ptx_version"] = ptx_version()
    return keywords | {"backend_options": options}


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
      NotImplementedError: with the reason, where Triton kernels cannot be traced.
    """
    require()
    import jax_triton

    return jax_triton.triton_call(
        *args,
        kernel=kernel,
        grid=grid,
        num_warps=num_warps,
        num_stages=num_stages,
        compute_capability=compute_capability,
        **_version_keywords(out, fp_fusion),
        **constants,
    )
