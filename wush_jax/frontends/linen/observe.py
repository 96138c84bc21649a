"""Second moments and sample tokens of what enters each linear layer, as the float model runs.

Results leave through the params collection: beside ``kernel`` each layer writes variables of its
own, and Flax carries those out of scans, vmaps, remats and jits exactly as ``init`` carries
kernels. Nothing is added to the model, and no host callback runs.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from wush_jax.frontends.linen import calls as layers
from wush_jax.frontends.linen.discover import Layer
from wush_jax.layers import stacking
from wush_jax.layers.contraction import Contraction
from wush_jax.layers.trees import join, plain
from wush_jax.statistics import observation as statistics
from wush_jax.statistics.moments import Mask
from wush_jax.statistics.observation import Observation

_OBSERVED = {field.name: f"wush_{field.name}" for field in dataclasses.fields(Observation)}


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
        _, changed = layers.call_model(model, variables, batch, mutable=layers.mutable_anew())
    flat: dict[str, Any] = flatten_dict(plain(changed)["params"], sep="/")
    observations = {}
    for path in blocks:
        leaves = [flat[join(path, variable)] for variable in _OBSERVED.values()]
        axes = found[path].stack_axes
        observations[path] = Observation(*(stacking.to_front(leaf, axes) for leaf in leaves))
    return observations


def observe_rows(
    contraction: Contraction, x: jax.Array, block: int, sample: int, mask: Mask | None
) -> Observation:
    """`statistics.observe` of a layer's input as the layer is given it; one for each batch axis."""
    rows = contraction.rows(x)
    batched = contraction.roles.count("b")
    tokens = token_mask(mask, rows.shape[batched:-1])
    look = functools.partial(statistics.observe, block=block, sample=sample, mask=tokens)
    for _ in range(batched):
        look = jax.vmap(look)
    return look(rows)


def token_mask(mask: Mask | None, tokens: tuple[int, ...]) -> Mask | None:
    """The mask as [*tokens], for a layer whose input it fits; None where it does not apply."""
    if mask is None:
        return None
    if tokens[: mask.ndim] == mask.shape:
        return jnp.broadcast_to(mask.reshape(mask.shape + (1,) * (len(tokens) - mask.ndim)), tokens)
    return mask.reshape(tokens) if tokens == (mask.size,) else None
