"""Each quantized layer's error on held-out batches, as the float model runs.

What enters a layer is what enters it in the float model, so that each layer answers for itself.
As in `observe`, results leave through the params collection; the quantized kernel enters there
too, beside the float one, so that ``nn.scan`` and ``nn.vmap`` slice both alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from wush_jax.frontends.linen import calls as layers
from wush_jax.frontends.linen.discover import shares_weights
from wush_jax.frontends.linen.observe import token_mask
from wush_jax.frontends.linen.run import as_variables
from wush_jax.layers import trees
from wush_jax.layers.contraction import Contraction, kernel_to_matrix
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import online as ops
from wush_jax.reporting.progress import track
from wush_jax.statistics.moments import Mask

_KERNEL = "wush_quantized"
_SUMS = ("wush_error_squares", "wush_output_squares")


def layer_errors(
    model: nn.Module,
    params: Mapping[str, Any],
    qparams: Mapping[str, Any],
    batches: Iterable[Any],
    *,
    mask: Callable[[Any], Mask] | None = None,
    progress: bool | None = None,
) -> dict[str, float]:
    """‖y - xW‖² / ‖xW‖² of every quantized layer, x being its input in the float model.

    Args:
      model: the Flax Linen model.
      params: the float params, or the whole variables dict.
      qparams: quantized params, of either form.
      batches: any iterable, consumed once, of what the model takes, as for `wush_jax.quantize`.
      mask: from a batch to an array, non-zero where a token counts, as for `wush_jax.quantize`.
      progress: a progress bar on stderr; None shows it on a terminal only.

    Returns:
      Module path -> error. Of stacked layers (``nn.scan``, ``nn.vmap``), experts and modules
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
    variables = trees.plain(as_variables(params))
    variables = {**variables, "params": _beside(variables["params"], kernels)}

    @jax.jit
    def run(variables: Mapping[str, Any], batch: Any, tokens: Mask | None) -> dict[str, Array]:
        return _squares(model, variables, batch, tokens, kernels)

    totals: dict[str, np.ndarray] = {}
    for i, batch in enumerate(track(batches, "layer errors", progress)):
        batch = jax.tree.map(jnp.asarray, batch)
        squares = jax.device_get(run(variables, batch, None if mask is None else mask(batch)))
        for path, pair in squares.items():
            if not np.isfinite(pair).all():
                raise ValueError(f"{path}: NaN or Inf in its output on batch {i}; mask padding")
            totals[path] = totals.get(path, np.zeros(2)) + pair
    if not totals:
        raise ValueError("batches is empty, or reaches no quantized layer")
    for path in kernels:
        if path not in totals:
            raise ValueError(f"{path}: no batch reached this layer; feed it")
    return {path: _ratio(*totals[path]) for path in kernels}


def _ratio(error: float, norm: float) -> float:
    if norm == 0:
        return 0.0 if error == 0 else float("inf")
    return float(error / norm)


def _beside(params: Mapping, kernels: Mapping[str, QuantizedKernel], prefix: str = "") -> dict:
    """The float params with each quantized kernel beside the float one."""
    out = {
        name: _beside(child, kernels, trees.join(prefix, name))
        if isinstance(child, Mapping)
        else child
        for name, child in params.items()
    }
    return {**out, _KERNEL: kernels[prefix]} if prefix in kernels else out


def _squares(
    model: nn.Module,
    variables: Mapping[str, Any],
    batch: Any,
    mask: Mask | None,
    paths: Iterable[str],
) -> dict[str, Array]:
    """Module path -> float32 [2], ‖y - xW‖² and ‖xW‖², of the layers that the batch reaches."""

    def intercept(next_fun, args, kwargs, context):
        call = layers.linear_call(context, args, kwargs)
        module = context.module
        if call is None or not module.has_variable("params", _KERNEL):
            return next_fun(*args, **kwargs)
        float_kernel = nn.meta.unbox(module.get_variable("params", "kernel"))
        kernel = module.get_variable("params", _KERNEL)
        bias = nn.meta.unbox(module.get_variable("params", "bias")) if module.use_bias else None
        dtype = layers.compute_dtype(module, call.x, kernel.dtype, bias)
        found = _of_call(call.contraction, call.x.astype(dtype), float_kernel, kernel, mask)
        for name, value in zip(_SUMS, found, strict=True):
            if module.has_variable("params", name):  # a shared module's second call
                value = value + module.get_variable("params", name)
            module.put_variable("params", name, value)
        return next_fun(*args, **kwargs)

    try:
        with nn.intercept_methods(intercept):
            mutable = layers.mutable_anew()
            changed = layers.call_model(model, variables, batch, mutable=mutable)
    except ValueError as error:
        if not shares_weights(error):
            raise
        raise NotImplementedError(
            "a quantized kernel is shared among the steps of an nn.scan (or RNN) or the lanes of "
            "an nn.vmap, where Flax lets no sums out; measure it on inputs that you captured"
        ) from error
    flat: dict[str, Any] = flatten_dict(trees.plain(changed[1])["params"], sep="/")
    return {
        path: jnp.stack([jnp.sum(flat[trees.join(path, name)]) for name in _SUMS])
        for path in paths
        if trees.join(path, _SUMS[0]) in flat
    }


def _of_call(
    contraction: Contraction, x: Array, w: Array, kernel: QuantizedKernel, mask: Mask | None
) -> list[Array]:
    """Both sums, float32 [1, 1] each: of rank two, so that Flax can stack them as it does W."""
    rows = contraction.rows(x)
    batched = contraction.roles.count("b")
    tokens = token_mask(mask, rows.shape[batched:-1])
    flat = rows.reshape(*rows.shape[:batched], -1, rows.shape[-1])
    weights = kernel_to_matrix(w, contraction.roles).astype(jnp.float32)
    exact = jnp.matmul(flat.astype(jnp.float32), weights, precision="highest")
    difference = ops.linear(flat, kernel).astype(jnp.float32) - exact
    keep = jnp.ones((), bool) if tokens is None else (tokens != 0).reshape(-1, 1)
    return [jnp.sum(jnp.where(keep, y, 0) ** 2).reshape(1, 1) for y in (difference, exact)]
