"""Each quantized layer's error on held-out batches, as the float model runs.

What enters a layer is what enters it in the float model, so that each layer answers for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from wush_jax.frontends import select
from wush_jax.layers import trees
from wush_jax.reporting.progress import track
from wush_jax.statistics.moments import Mask


def layer_errors(
    model: Any,
    params: Any,
    qparams: Any,
    batches: Iterable[Any],
    *,
    mask: Callable[[Any], Mask] | None = None,
    progress: bool | None = None,
) -> dict[str, float]:
    """‖y - xW‖² / ‖xW‖² of every quantized layer, x being its input in the float model.

    Args:
      model: as for `wush_jax.quantize`.
      params: the float params, or the whole variables dict.
      qparams: quantized params, of either form.
      batches: any iterable, consumed once, of what the model takes, as for `wush_jax.quantize`.
      mask: from a batch to an array, non-zero where a token counts, as for `wush_jax.quantize`.
      progress: a progress bar on stderr; None shows it on a terminal only.

    Returns:
      Layer's name -> error. Of stacked layers (``nn.scan``, ``nn.vmap``), experts and modules
      called more than once, the squares are summed first. Squares are summed in float32 within a
      batch and in float64 over batches; xW is computed in float32 from x in the layer's dtype, y
      as the layer computes it.

    Raises:
      ValueError: no batch; no quantized layer; one that no batch reached; NaN or Inf on the way.
      NotImplementedError: a kernel is shared among the steps of a scan or the lanes of a vmap,
        where Flax lets nothing out.
    """
    kernels = trees.quantized_kernels(qparams)
    if not kernels:
        raise ValueError("qparams hold no quantized kernel: there is no layer error to measure")
    front = select.front_end(model)
    variables = front.variables(params)
    run = jax.jit(front.layer_squares)
    totals: dict[str, np.ndarray] = {}
    for i, batch in enumerate(track(batches, "layer errors", progress)):
        batch = front.batch(batch)
        tokens = None if mask is None else mask(batch)
        squares = jax.device_get(run(variables, kernels, batch, tokens))
        for name, pair in squares.items():
            if not np.isfinite(pair).all():
                raise ValueError(f"{name}: NaN or Inf in its output on batch {i}; mask padding")
            totals[name] = totals.get(name, np.zeros(2)) + pair
    if not totals:
        raise ValueError("batches is empty, or reaches no quantized layer")
    for name in kernels:
        if name not in totals:
            raise ValueError(f"{name}: no batch reached this layer; feed it")
    return {name: _ratio(*totals[name]) for name in kernels}


def _ratio(error: float, norm: float) -> float:
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    return float(error / norm)
