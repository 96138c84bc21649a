"""The squares of each quantized layer's error and output on a batch, as the float model runs.

What enters a layer is what enters it in the float model, so that each layer answers for itself.
As in `observe`, results leave through the params collection; the quantized kernel enters there
too, beside the float one, so that ``nn.scan`` and ``nn.vmap`` slice both alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array

from wush_jax.frontends import rows
from wush_jax.frontends.linen import calls
from wush_jax.frontends.linen.discover import shares_weights
from wush_jax.layers import trees
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.statistics.moments import Mask

_KERNEL = "wush_quantized"
_SUMS = ("wush_error_squares", "wush_output_squares")


def squares(
    model: nn.Module,
    variables: Mapping[str, Any],
    kernels: Mapping[str, QuantizedKernel],
    batch: Any,
    mask: Mask | None,
) -> dict[str, Array]:
    """Module path -> float32 [2], see `FrontEnd.layer_squares`. Jit it.

    Raises:
      NotImplementedError: a kernel is shared among the steps of a scan or the lanes of a vmap,
        where Flax lets nothing out.
    """
    variables = {**variables, "params": _beside(variables["params"], kernels)}

    def intercept(next_fun, args, kwargs, context):
        call = calls.linear_call(context, args, kwargs)
        module = context.module
        if call is None or not module.has_variable("params", _KERNEL):
            return next_fun(*args, **kwargs)
        float_kernel = nn.meta.unbox(module.get_variable("params", trees.FLAX_WEIGHT))
        kernel = module.get_variable("params", _KERNEL)
        bias = nn.meta.unbox(module.get_variable("params", "bias")) if module.use_bias else None
        dtype = calls.compute_dtype(module, call.x, kernel.dtype, bias)
        x = call.x.astype(dtype)
        found = rows.squares(call.contraction, x, float_kernel, kernel, mask)
        for name, value in zip(_SUMS, found, strict=True):
            value = value.reshape(1, 1)  # of rank two, so that Flax can stack it as it does W
            if module.has_variable("params", name):  # a shared module's second call
                value = value + module.get_variable("params", name)
            module.put_variable("params", name, value)
        return next_fun(*args, **kwargs)

    try:
        with nn.intercept_methods(intercept):
            mutable = calls.mutable_anew()
            changed = calls.call_model(model, variables, batch, mutable=mutable)
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
        for path in kernels
        if trees.join(path, _SUMS[0]) in flat
    }


def _beside(params: Mapping, kernels: Mapping[str, QuantizedKernel], prefix: str = "") -> dict:
    """The float params with each quantized kernel beside the float one."""
    out = {
        name: _beside(child, kernels, trees.join(prefix, name))
        if isinstance(child, Mapping)
        else child
        for name, child in params.items()
    }
    return {**out, _KERNEL: kernels[prefix]} if prefix in kernels else out
