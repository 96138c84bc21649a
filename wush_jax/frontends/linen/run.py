"""Running a Flax Linen model quantized: an interceptor around each linear module's call.

`flax.linen.intercept_methods` is scoped to the ``with`` block and the thread: nothing outside the
call, no other model and no jit cache sees it. Under ``nn.scan``, ``nn.vmap``, ``nn.remat`` and
``nn.jit`` Flax slices a `QuantizedKernel`'s leaves as it would slice the float kernel.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

from wush_jax.frontends.linen import calls
from wush_jax.layers import trees
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import online


def apply(
    model: nn.Module,
    qparams: Mapping[str, Any],
    *args: Any,
    implementation: str | None = None,
    **kwargs: Any,
) -> Any:
    """``model.apply`` with the quantized kernels in ``qparams``. Pure: jit, vmap, grad, shard it.

    Args:
      model: the Flax Linen model, unchanged.
      qparams: what `wush_jax.quantize` returned: the params, or the whole variables dict.
      *args, **kwargs: as for ``model.apply`` (``rngs=``, ``mutable=``, ``method=`` included).
      implementation: None for the best one on this device, or a name in
        `wush_jax.ops.online.IMPLEMENTATIONS`.

    Returns:
      What ``model.apply`` returns.

    Raises:
      ValueError: an unknown implementation, or an input of another shape than a layer's kernel.
      NotImplementedError: the named implementation cannot run a layer here; the message says why.
    """
    with quantized(implementation):
        return model.apply(trees.as_variables(qparams), *args, **kwargs)


@contextlib.contextmanager
def quantized(implementation: str | None = None) -> Iterator[None]:
    """Within the block, linear modules whose kernel is a `QuantizedKernel` run quantized."""
    last: dict[str, Any] = {}  # the newest encoded input, for the layers that share it

    def encode(x: jax.Array, kernel: QuantizedKernel, key: tuple, source: jax.Array):
        # Same array object, same group, same trace: the encoded rows are the same.
        if kernel.shared_input is None:
            return online.encode(x, kernel, implementation=implementation)
        if last.get("source") is not source or last.get("key") != key:
            last.update(
                source=source, key=key, rows=online.encode(x, kernel, implementation=implementation)
            )
        return last["rows"]

    def intercept(next_fun, args, kwargs, context):
        call = calls.linear_call(context, args, kwargs)
        if call is None:
            return next_fun(*args, **kwargs)
        module = context.module
        kernel = nn.meta.unbox(module.get_variable("params", trees.FLAX_WEIGHT))
        if not isinstance(kernel, QuantizedKernel):
            return next_fun(*args, **kwargs)
        _check_shape(kernel, call, calls.path_of(module))
        bias = nn.meta.unbox(module.get_variable("params", "bias")) if module.use_bias else None
        dtype = calls.compute_dtype(module, call.x, kernel.dtype, bias)
        rows = call.contraction.rows(call.x.astype(dtype))
        key = (kernel.shared_input, dtype, calls.trace_of(module))
        encoded = encode(rows, kernel, key, call.x)
        y = online.matmul(encoded, kernel, dtype, implementation=implementation)
        y = call.contraction.output(y, kernel.kernel_shape)
        if bias is not None:
            y = y + call.contraction.broadcast_bias(bias).astype(dtype)
        return y

    with nn.intercept_methods(intercept):
        yield
    last.clear()


def _check_shape(kernel: QuantizedKernel, call: calls.Call, path: str) -> None:
    expected = tuple(
        call.x.shape[call.contraction.x.index(label)] if label in call.contraction.x else size
        for label, size in zip(call.contraction.kernel, kernel.kernel_shape, strict=True)
    )
    if kernel.roles != call.contraction.roles or expected != kernel.kernel_shape:
        raise ValueError(
            f"{path}: the input {call.x.shape} contracts as {call.contraction}, which takes a "
            f"kernel {expected}; the quantized one is {kernel.kernel_shape} ({kernel.roles})"
        )
