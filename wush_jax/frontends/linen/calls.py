"""Which Flax Linen modules are linear layers, and how each one contracts its input."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype
from jaxtyping import Array
from opt_einsum.parser import parse_einsum_input

from wush_jax.layers.contraction import Contraction

_LINEAR = (nn.Dense, nn.DenseGeneral, nn.Einsum)
_TRACES = itertools.count()


class Call(NamedTuple):
    """One call of a linear module.

    Attributes:
      x: the very array object that the module was given.
      contraction: how x meets the kernel.
    """

    x: Array
    contraction: Contraction


def call_model(model: nn.Module, variables: Mapping, batch: Any, **kwargs: Any) -> Any:
    """``model.apply`` on a calibration batch: ``*batch``, ``**batch``, or ``batch`` itself."""
    if isinstance(batch, Mapping):
        return model.apply(variables, **batch, **kwargs)
    if isinstance(batch, tuple):
        return model.apply(variables, *batch, **kwargs)
    return model.apply(variables, batch, **kwargs)


def mutable_anew() -> list[str]:
    """``mutable=`` for `call_model`: "params", and a collection that no other trace has named.

    Flax keeps for the process what ``nn.jit`` traced, by the mutable collections among others; an
    old trace would run without this one's interceptor. Nothing writes the second collection.
    """
    return ["params", f"wush_trace_{next(_TRACES)}"]


def path_of(module: nn.Module) -> str:
    """The module's path as in the params tree, "layer_0/attention/query"."""
    return "/".join(str(part) for part in module.path)


def linear_call(context: nn.module.InterceptorContext, args: tuple, kwargs: dict) -> Call | None:
    """The call of a linear layer that an interceptor sees, or None for any other call.

    Subclasses count as long as the running ``__call__`` is the base class's own: a subclass that
    overrides it computes something else, and its call of ``super()`` comes by here itself.
    """
    module = context.module
    base = next((cls for cls in _LINEAR if isinstance(module, cls)), None)
    if base is None or context.method_name != "__call__":
        return None
    running = getattr(context.orig_method, "func", context.orig_method)
    if inspect.unwrap(running) is not inspect.unwrap(base.__call__):
        return None
    bound = inspect.signature(inspect.unwrap(base.__call__)).bind(module, *args, **kwargs)
    x = bound.arguments["inputs"]
    if not hasattr(x, "ndim") or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    try:
        return Call(x, _contraction(module, x, bound.arguments))
    except ValueError:  # an Einsum that is no plain contraction with its kernel
        return None


def _contraction(module: nn.Module, x: Array, arguments: dict[str, Any]) -> Contraction:
    if isinstance(module, nn.Einsum):
        equation = arguments.get("einsum_str") or module.einsum_str
        # opt_einsum spells out the ellipses, as Flax's own Einsum does
        kernel = jnp.broadcast_to(jnp.zeros((), x.dtype), module.shape)
        operands, out, _ = parse_einsum_input((equation, x, kernel))
        labels = operands.split(",")
        return Contraction(labels[0], labels[1], out)
    if isinstance(module, nn.DenseGeneral):
        # Flax contracts along the sorted axes, in whatever order they were given
        axis = sorted(a % x.ndim for a in _tuple(module.axis))
        batch = sorted(a % x.ndim for a in _tuple(module.batch_dims))
        return Contraction.dense_general(x.ndim, axis, batch, len(_tuple(module.features)))
    return Contraction.dense(x.ndim)


def _tuple(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def trace_of(module: nn.Module) -> Any:
    """An opaque value that differs between JAX traces: arrays of one cannot be used in another."""
    assert module.scope is not None
    return module.scope.trace_level


def compute_dtype(module: nn.Module, x: Array, kernel_dtype: str, bias: Array | None) -> Any:
    """The dtype in which the module computes and answers, by Flax's promotion rules."""
    others = [jnp.zeros((), kernel_dtype)] + ([] if bias is None else [bias])
    return canonicalize_dtype(x, *others, dtype=module.dtype)
