"""`Gpu`: what all implementations by kernels of `wush_kernels` share: judging, batches, gradients.

`wush_kernels` is imported when a layer runs on a GPU, and not before.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wush_jax import formats
from wush_jax.formats import private_layout
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops.device import Device
from wush_jax.ops.implementations.base import Implementation, by_rows, per_batch
from wush_jax.ops.implementations.batching import fold_rows
from wush_jax.transforms.blocks import pad_features
from wush_jax.transforms.rotate import rotate

HOPPER, BLACKWELL = (9, 0), ((10, 0), (10, 3), (12, 0))
FEW = 64  # tokens up to which weights are decoded inside the product
_BLOCKS = (16, 32, 64, 128)  # transforms' D that the kernels take
_DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)


class Gpu(Implementation):
    """An implementation on NVIDIA GPUs.

    Attributes:
      capabilities: compute capabilities that it is built for.
      pairs: (weights' format, activations' format or None) that it takes.
    """

    capabilities: ClassVar[tuple[tuple[int, int], ...]] = (HOPPER,)
    pairs: ClassVar[tuple[tuple[str, str | None], ...]]

    def problem(
        self, kernel: QuantizedKernel, device: Device, dtype: jnp.dtype | None = None
    ) -> str | None:
        if device.platform != "gpu" or device.capability is None:
            return f"it runs on NVIDIA GPUs, this is {device}"
        if device.capability not in self.capabilities:
            names = ", ".join(f"sm_{major}{minor}" for major, minor in self.capabilities)
            return f"it is built for {names}, this is {device}"
        if dtype is not None and dtype not in _DTYPES:
            return f"it takes bfloat16, float16 and float32 activations, not {jnp.dtype(dtype)}"
        return missing() or _unread(self, kernel) or self.unfit(kernel)

    def unasked(self, device: Device) -> bool:
        return device.capability in self.capabilities

    def unfit(self, kernel: QuantizedKernel) -> str | None:
        """What else keeps it from reading a kernel of formats that it takes."""
        return None

    def encode(self, x: Float[Array, "*tokens K"], kernel: QuantizedKernel) -> Any:
        def one(x: Float[Array, "*tokens K"], kernel: QuantizedKernel) -> Any:
            x = pad_features(x, kernel.padded_features)
            run = self.regime(kernel, x.size // x.shape[-1]).encode
            return by_rows(fold_rows(functools.partial(_on_gpu, run)), kernel)(x)

        return per_batch(one, kernel)(jax.lax.stop_gradient(x), kernel)

    def matmul(
        self,
        encoded: Any,
        source: Float[Array, "*tokens K"],
        kernel: QuantizedKernel,
        dtype: jnp.dtype,
    ) -> Float[Array, "*tokens N"]:
        product = functools.partial(_product, (self, jnp.dtype(dtype)))
        return per_batch(product, kernel)(encoded, source, kernel)

    def prepared(self, kernel: QuantizedKernel, *, keep_fp8: bool) -> QuantizedKernel:
        fits = private_layout.fits(kernel.outputs, kernel.padded_features)
        return _private(kernel) if fits and self.private else kernel


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _product(
    how: tuple[Gpu, jnp.dtype], encoded: Any, source: Array, kernel: QuantizedKernel
) -> Array:
    implementation, dtype = how
    regime = implementation.regime(kernel, source.size // source.shape[-1])
    run = functools.partial(_on_gpu, functools.partial(regime.product, dtype=dtype))
    return by_rows(fold_rows(run), kernel)(encoded)


@_product.defjvp
def _product_jvp(how, primals, tangents):
    _, dtype = how
    _, _, kernel = primals
    y = _product(how, *primals)
    padded = pad_features(tangents[1], kernel.padded_features)
    rotated = rotate(padded, kernel.transform, kernel.hadamard_block)
    weights = kernel.values() * kernel.global_scale
    return y, jnp.einsum("...k,nk->...n", rotated, weights).astype(dtype)


def _on_gpu(run: Callable, rows: Any, kernel: QuantizedKernel) -> Any:
    """``run(rows, kernel, backend)`` by Triton where the program is compiled for CUDA.

    In a program for another device (and in tests that pretend to have a GPU) by references of the
    same number formats.
    """
    if jax.default_backend() != "gpu":
        return run(rows, kernel, "xla")
    return jax.lax.platform_dependent(
        rows,
        kernel,
        cuda=lambda rows, kernel: run(rows, kernel, "triton"),
        default=lambda rows, kernel: run(rows, kernel, "xla"),
    )


def _unread(implementation: Gpu, kernel: QuantizedKernel) -> str | None:
    """What of a kernel's formats and sizes an implementation's kernels do not take."""
    fmt, act = kernel.format, kernel.act_format
    if (fmt.name, None if act is None else act.name) not in implementation.pairs:
        return f"it does not take {fmt} weights with {act or 'float'} activations"
    if kernel.transform_name != "identity" and kernel.block not in _BLOCKS:
        return f"its transforms are {', '.join(map(str, _BLOCKS))} wide, not {kernel.block}"
    if act is not None and act.name == "mxfp4" and act.rule != "wush":
        return f"it quantizes activations by mxfp4/wush, not {act}"
    if kernel.padded_features % 32:
        return f"it takes in-features in multiples of 32, not {kernel.padded_features}"
    return None


def inexact(kernel: QuantizedKernel) -> str | None:
    """Why kernels that multiply in float16 or wider cannot hold the weights exactly."""
    if kernel.exact_in == "float32" or kernel.exponents is None:
        return "the weights' group scales span more than float16 holds"
    return None


def from_data(kernel: QuantizedKernel) -> str | None:
    """Why a product with a constant factor cannot run: a global scale that is known only here."""
    fmt, act = kernel.format, kernel.act_format
    if act is not None and None in (formats.activation_scale(act, fmt), fmt.global_scale):
        return f"the global scales of {fmt} come from data"
    return None


@functools.cache
def missing() -> str | None:
    """What the kernels need and this installation lacks, or has in versions that do not fit."""
    from wush_kernels import _triton

    return _triton.reason_unavailable()


_private = jax.jit(QuantizedKernel.private)
