"""Seeing what enters each linear layer of a Flax Linen model, without editing the model.

Two interceptors run the float model:

* `discover`, on abstract values, finds the linear layers, how they contract, which of them read
  the very same array, and where Flax stacks their variables (``nn.scan``, ``nn.vmap``);
* `observe`, under jit, sums second moments and draws sample tokens.

Results leave through the params collection: beside ``kernel`` each layer writes variables of its
own, and Flax carries those out of scans, vmaps, remats and jits exactly as ``init`` carries
kernels. Nothing is added to the model, and no host callback runs.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from wush_jax import statistics
from wush_jax.contraction import Contraction
from wush_jax.flax import layers
from wush_jax.moments import Mask
from wush_jax.statistics import Observation

# Axis lengths that no real layer stack has: where an extra axis appears tells where Flax stacks.
_PRIMES = (10007, 10009, 10037, 10039, 10061, 10067, 10069, 10079)
NOT_STACKED: Mapping[int, tuple[int, ...]] = dict.fromkeys(range(2, len(_PRIMES) + 1), ())
_PROBE = "wush_probe_{}"
_OBSERVED = {field.name: f"wush_{field.name}" for field in dataclasses.fields(Observation)}


@dataclasses.dataclass(frozen=True)
class Layer:
    """What `discover` learns of a linear layer.

    Attributes:
      path: module path.
      contraction: of its first call.
      kernel_shape: without stacked axes.
      inputs: identities of the arrays it was called with; layers with equal ones share their input.
      stacked: rank -> positions of the stacked axes in a variable of that (unstacked) rank.
    """

    path: str
    contraction: Contraction
    kernel_shape: tuple[int, ...]
    inputs: tuple[int, ...]
    stacked: Mapping[int, tuple[int, ...]]

    @property
    def features(self) -> int:
        """K."""
        sizes = zip(self.kernel_shape, self.contraction.roles, strict=True)
        return math.prod(n for n, role in sizes if role == "k")


@dataclasses.dataclass(frozen=True)
class Discovery:
    """All linear layers that one batch reaches, and the paths of all modules that ran."""

    layers: dict[str, Layer]
    called: frozenset[str]


def call_model(model: nn.Module, variables: Mapping, batch: Any, **kwargs: Any) -> Any:
    """``model.apply`` on a calibration batch: ``*batch``, ``**batch``, or ``batch`` itself."""
    if isinstance(batch, Mapping):
        return model.apply(variables, **batch, **kwargs)
    if isinstance(batch, tuple):
        return model.apply(variables, *batch, **kwargs)
    return model.apply(variables, batch, **kwargs)


def discover(model: nn.Module, variables: Mapping, batch: Any) -> Discovery:
    """Traces the model once on abstract values; no arithmetic is done.

    Args:
      model, variables: the float model (arrays or `jax.ShapeDtypeStruct`).
      batch: one calibration batch (arrays or `jax.ShapeDtypeStruct`).
    """
    calls: dict[str, list] = {}
    called: set[str] = set()
    inputs: list[tuple] = []  # distinct ones; kept alive, so that no two are the same object

    def identify(call: layers.Call, trace: Any) -> int:
        """Equal for the same array, contracted along the same axes, in the same trace."""
        axes = call.contraction.contracted_axes
        for i, (x, known_axes, known_trace) in enumerate(inputs):
            if x is call.x and known_axes == axes and known_trace == trace:
                return i
        inputs.append((call.x, axes, trace))
        return len(inputs) - 1

    def intercept(next_fun, args, kwargs, context):
        module = context.module
        if module.scope is not None:
            called.add(layers.path_of(module))
        call = layers.linear_call(context, args, kwargs)
        if call is None:
            return next_fun(*args, **kwargs)
        out = next_fun(*args, **kwargs)
        identity = identify(call, module.scope.trace_level)
        kernel = nn.meta.unbox(module.get_variable("params", "kernel"))
        calls.setdefault(layers.path_of(module), []).append(
            (call.contraction, kernel.shape, identity)
        )
        for rank in range(2, len(_PRIMES) + 1):
            module.put_variable("params", _PROBE.format(rank), jnp.zeros(_PRIMES[:rank]))
        return out

    def run(variables, batch):
        with nn.intercept_methods(intercept):
            return call_model(model, variables, batch, mutable=["params"])[1]

    changed = jax.eval_shape(run, _plain(variables), batch)
    probes = flax.traverse_util.flatten_dict(_plain(changed)["params"], sep="/")
    found = {}
    for path, seen in calls.items():
        contraction, shape, _ = seen[0]
        if any(c.roles != contraction.roles or s != shape for c, s, _ in seen):
            raise ValueError(
                f"{path}: this module contracts its kernel in different ways at each call"
            )
        stacked = {
            rank: _extra_axes(probes[f"{path}/{_PROBE.format(rank)}"].shape, rank)
            for rank in range(2, len(_PRIMES) + 1)
        }
        identities = tuple(identity for *_, identity in seen)
        found[path] = Layer(path, contraction, shape, identities, stacked)
    return Discovery(found, frozenset(called))


def observe(
    model: nn.Module,
    variables: Mapping,
    batch: Any,
    mask: Mask | None,
    blocks: Mapping[str, int],
    sample: int,
    found: Mapping[str, Layer],
) -> dict[str, Observation]:
    """Runs the model on a batch and returns what enters the layers in ``blocks``. Jit it.

    Args:
      mask: non-zero where a token counts, [*tokens]; applies to every layer whose input has those
        leading axes (or as many rows), and to no other.
      blocks: module path -> D.
      sample: how many tokens to draw.
      found: the layers, from `discover`.

    Returns:
      module path -> `Observation`, stacked axes moved to the front.
    """

    def intercept(next_fun, args, kwargs, context):
        call = layers.linear_call(context, args, kwargs)
        if call is None or layers.path_of(context.module) not in blocks:
            return next_fun(*args, **kwargs)
        module = context.module
        block = blocks[layers.path_of(module)]
        seen = observe_rows(call.contraction, call.x, block, sample, mask)
        if module.has_variable("params", _OBSERVED["total"]):  # a shared module's second call
            before = Observation(*(module.get_variable("params", v) for v in _OBSERVED.values()))
            seen = statistics.combine(before, seen)
        for field, variable in _OBSERVED.items():
            module.put_variable("params", variable, getattr(seen, field))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(intercept):
        # the second collection is never written: it keeps nn.jit's cache apart from `discover`'s
        _, changed = call_model(model, variables, batch, mutable=["params", "wush_observe"])
    flat = flax.traverse_util.flatten_dict(_plain(changed)["params"], sep="/")
    observations = {}
    for path in blocks:
        leaves = [flat[f"{path}/{variable}"] for variable in _OBSERVED.values()]
        observations[path] = Observation(*(unstack(leaf, found[path]) for leaf in leaves))
    return observations


def observe_rows(
    contraction: Contraction, x: jax.Array, block: int, sample: int, mask: Mask | None
) -> Observation:
    """`statistics.observe` of a layer's input as the layer is given it; one for each batch axis."""
    rows = contraction.rows(x)
    batched = contraction.roles.count("b")
    tokens = _token_mask(mask, rows.shape[batched:-1])
    look = functools.partial(statistics.observe, block=block, sample=sample, mask=tokens)
    for _ in range(batched):
        look = jax.vmap(look)
    return look(rows)


def unstack(leaf: jax.Array, layer: Layer) -> jax.Array:
    """A stacked variable with its stacked axes first."""
    axes = layer.stacked[leaf.ndim - len(layer.stacked[2])]
    return jnp.moveaxis(leaf, axes, range(len(axes)))


def _token_mask(mask: Mask | None, tokens: tuple[int, ...]) -> Mask | None:
    if mask is None:
        return None
    if tokens[: mask.ndim] == mask.shape:
        return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(tokens) - mask.ndim)), tokens)
    return mask.reshape(tokens) if tokens == (mask.size,) else None


def _extra_axes(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    return tuple(i for i, n in enumerate(shape) if n not in _PRIMES[:rank])


def _plain(tree: Any) -> Any:
    return nn.meta.unbox(flax.core.unfreeze(tree))
