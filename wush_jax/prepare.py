"""Putting quantized params into the layout that this device's kernels read fastest, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from wush_jax import dispatch, layout, trees
from wush_jax.kernel import QuantizedKernel


def prepare(qparams: Mapping[str, Any], *, platform: str | None = None) -> Any:
    """Quantized params for serving: weights in the order in which the GPU kernels read them.

    Bit-exactly reversible (`unprepare`), of the same shapes, dtypes and size; every function of
    `wush_jax` takes either. Kernels that no fast implementation reads, or whose N is not a multiple
    of 16 or K not of 128, come back as they are, and so does everything on other devices.

    Args:
      qparams: quantized params or the whole variables dict.
      platform: "gpu", "cpu", ...; None for the default device's.
    """
    capability = dispatch.capability() if platform in (None, jax.default_backend()) else None
    here = dispatch.Device(platform or jax.default_backend(), capability)

    def private(kernel: QuantizedKernel) -> QuantizedKernel:
        choice = dispatch.choose(kernel, here)
        fits = layout.fits(kernel.outputs, kernel.padded_features)
        reads = choice.implementation in dispatch.READ_PRIVATE
        return jax.jit(QuantizedKernel.private)(kernel) if reads and fits else kernel

    return _map_kernels(qparams, private)


def unprepare(qparams: Mapping[str, Any]) -> Any:
    """The inverse of `prepare`: the public layout, in which params are best stored."""
    return _map_kernels(qparams, QuantizedKernel.public)


def _map_kernels(qparams: Mapping[str, Any], function: Callable) -> Any:
    inner = qparams["params"] if isinstance(qparams.get("params"), Mapping) else qparams
    changed = {path: function(k) for path, k in trees.quantized_kernels(qparams).items()}
    replaced = trees.replace_kernels(inner, changed)
    return {**qparams, "params": replaced} if inner is not qparams else replaced
