"""FP8 product for Hopper in Pallas Mosaic GPU: y = activation(factor * a bᵀ + bias).

One kernel with a general epilogue and, on request, promoted accumulation. XLA's FP8 GEMM takes a
factor known at compile time for free, but one known at run time only as a second pass over the
output (jax 0.11.2).

The following hold:

* TMA fills with zeros what lies outside an operand and drops what lies outside the output, so any
  tile shape serves any matrix; it needs M % 8 == N % 64 == K % 128 == 0, though, and other shapes
  are padded with zeros (and the output sliced) by XLA, at the price of a copy of the operand;
* sums are float32. FP8 tensor cores keep some 14 bits when they align products; precise=True adds
  every 128 of K into a second float32 accumulator;
* wgmma reads FP8 K-major only: both operands are row-major in K;
* operands of different FP8 types need jax >= 0.11.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Float

from wush_kernels.quantized_matmul.mosaic.config import EPILOGUE_ROWS, TILE_K, WARPGROUPS, Config
from wush_kernels.quantized_matmul.mosaic.config import config as default_config
from wush_kernels.quantized_matmul.mosaic.epilogue import ACTIVATIONS
from wush_kernels.quantized_matmul.mosaic.kernel import kernel
from wush_kernels.quantized_matmul.mosaic.walk import grid

FP8 = (jnp.float8_e5m2, jnp.float8_e4m3fn)
MIXED_FP8 = jax.__version_info__ >= (0, 11)  # before, wgmma takes two operands of one type


def mosaic_matmul(
    a: Float[Array, "M K"],
    b: Float[Array, "N K"],
    factor: Float[Array, ""] | float,
    *,
    bias: Float[Array, " N"] | None = None,
    activation: str | None = None,
    dtype=jnp.bfloat16,
    precise: bool = False,
    config: Config | None = None,
    interpret: Any = False,
) -> Float[Array, "M N"]:
    """activation(factor * a bᵀ + bias) for FP8 a and b, on sm_90.

    Args:
      a, b: float8_e5m2 or float8_e4m3fn; of one type before jax 0.11, where weights must be
        expanded to E5M2 (29 octaves of exact MXFP4, so no less exact than E4M3).
      factor: float32 scalar, an array at run time.
      bias: any float type, added in float32.
      activation: None, "gelu" (the tanh form, `jax.nn.gelu`'s default) or "silu", in float32.
      dtype: of the result, bfloat16 or float32.
      precise: promote the sums of every 128 of K. Relative Frobenius errors seen on these tensor
        cores: 3.5e-5 with, 5e-4 (K = 4096) to 1.3e-3 (K = 16384) without.
      config: tile sizes; None for the default of these shapes.
      interpret: True or interpreter parameters run the kernel in Pallas' GPU interpreter, which
        checks the walk over tiles and the barriers, not the layouts.

    Raises:
      ValueError: shapes or types do not fit, or the configuration cannot be built.
      NotImplementedError: the GPU is no Hopper, or this JAX cannot multiply these two FP8 types.
    """
    M, K, N = _check(a, b, bias, activation, dtype)
    capability = getattr(jax.devices()[0], "compute_capability", "9.0")
    if not str(capability).startswith("9."):
        raise NotImplementedError(
            f"this kernel is for compute capability 9.0 (wgmma), not {capability}"
        )
    if a.dtype != b.dtype and not MIXED_FP8:
        raise NotImplementedError(
            f"Mosaic GPU of jax {jax.__version__} multiplies FP8 operands of one type, not "
            f"{a.dtype} and {b.dtype}: expand the weights to {a.dtype}, or use jax >= 0.11"
        )
    itemsize = jnp.dtype(dtype).itemsize
    c = config or default_config(
        M, N, K, itemsize=itemsize, precise=precise, multiprocessors=multiprocessors()
    )
    if interpret:  # the interpreter neither clips nor fills, and cannot transpose a reference
        multiples = (c.tile_m * c.pair[0], c.tile_n * c.pair[1], TILE_K)
    else:
        c.check(itemsize, precise)
        multiples = (8, 64, TILE_K)
    m, n, k = (-(-size // to) * to for size, to in zip((M, N, K), multiples, strict=True))
    operands = [
        _pad(a, (m, k)),
        _pad(b, (n, k)).T if interpret else _pad(b, (n, k)),
        jnp.asarray(factor, jnp.float32).reshape(1),
    ]
    if bias is not None:
        operands.append(_pad(bias.astype(jnp.float32), (n,)))
    y = _launch(operands, (m, n, k), c, activation, dtype, precise, interpret)
    return y if (m, n) == (M, N) else y[:M, :N]


def multiprocessors() -> int:
    """Of the device that runs this, or 132 (H100, H200) where there is none."""
    return getattr(jax.devices()[0], "core_count", None) or 132


def _check(a, b, bias, activation, dtype) -> tuple[int, int, int]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a is [M, K] and b [N, K], not {a.shape} and {b.shape}")
    (M, K), N = a.shape, b.shape[0]
    if M < 1 or N < 8 or N % 8 or K < 32 or K % 32:
        raise ValueError(f"M >= 1, N a multiple of 8, K of 32, not M={M}, N={N}, K={K}")
    if a.dtype not in FP8 or b.dtype not in FP8:
        raise ValueError(f"a and b are float8_e5m2 or float8_e4m3fn, not {a.dtype} and {b.dtype}")
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"bias is [N] = [{N}], not {bias.shape}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation is one of {ACTIVATIONS}, not {activation!r}")
    if jnp.dtype(dtype) not in (jnp.bfloat16, jnp.float32):
        raise ValueError(f"the result is bfloat16 or float32, not {jnp.dtype(dtype)}")
    return M, K, N


def _pad(x: Array, shape: tuple[int, ...]) -> Array:
    if x.shape == shape:
        return x
    return jnp.pad(x, [(0, to - size) for to, size in zip(shape, x.shape, strict=True)])


def _launch(operands, sizes, c: Config, activation, dtype, precise, interpret) -> Array:
    """The kernel on padded operands; [m, n]."""
    m, n, _ = sizes
    itemsize = jnp.dtype(dtype).itemsize
    pair = math.prod(c.pair)
    tiles = math.prod(grid(c, sizes))
    owners = WARPGROUPS if c.split == "tile" else 1
    arrivals = 1 if c.split == "tile" else WARPGROUPS
    consumed: Any = plgpu.Barrier(num_arrivals=arrivals, num_barriers=c.stages)
    if c.cluster:
        consumed = plgpu.ClusterBarrier(
            collective_axes=("pair",), num_arrivals=arrivals, num_barriers=c.stages
        )
    right = (c.stages, TILE_K, c.tile_n) if interpret else (c.stages, c.tile_n, TILE_K)
    chunk = c.chunk(itemsize)
    scratch = {
        "a_tiles": _shared((c.stages, c.tile_m, TILE_K), operands[0].dtype, interpret),
        "b_tiles": _shared(right, operands[1].dtype, interpret),
        "staged": _shared(
            (WARPGROUPS, 2, min(EPILOGUE_ROWS, c.rows), chunk), jnp.dtype(dtype), interpret
        ),
        "loaded": plgpu.Barrier(num_arrivals=2, num_barriers=owners * c.stages),
        "consumed": consumed,
    }
    if len(operands) == 4:
        scratch["bias_tile"] = plgpu.SMEM((WARPGROUPS, c.columns), jnp.float32)
        scratch["bias_loaded"] = plgpu.Barrier(num_arrivals=1, num_barriers=WARPGROUPS)
    launch = plgpu.kernel(
        functools.partial(
            kernel,
            config=c,
            sizes=sizes,
            activation=activation,
            precise=precise,
            k_major=not interpret,
        ),
        out_type=jax.ShapeDtypeStruct((m, n), dtype),
        scratch_types=scratch,
        grid=(min(tiles, multiprocessors() // pair),),
        grid_names=("block",),
        cluster=(pair,),
        cluster_names=("pair",),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        kernel_name="wush_fp8_matmul",
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        interpret=interpreter() if interpret is True else interpret,
    )
    return launch(*operands)


def _shared(shape: tuple[int, ...], dtype, interpret):
    """Shared memory as wgmma and TMA want it: 8 x one swizzle atom, swizzled."""
    if interpret:
        return plgpu.SMEM(shape, dtype)
    width = min(128, shape[-1] * jnp.dtype(dtype).itemsize)
    tiling = (8, width // jnp.dtype(dtype).itemsize)
    make: Any = plgpu  # pyright takes these two for abstract in jax 0.11
    transforms = (make.TilingTransform(tiling), make.SwizzleTransform(width))
    return plgpu.SMEM(shape, dtype, transforms=transforms)


def interpreter() -> Any:
    """The GPU interpreter's default parameters, wherever this JAX keeps them."""
    parameters = getattr(plgpu, "InterpretGPUParams", None)
    if parameters is None:  # before jax 0.11
        from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams as parameters
    return parameters()
