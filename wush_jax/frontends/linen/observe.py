"""Second moments and sample tokens of what enters each linear layer, as the float model runs.

Results leave through the params collection: beside ``kernel`` each layer writes variables of its
own, and Flax carries those out of scans, vmaps, remats and jits exactly as ``init`` carries
kernels. Nothing is added to the model, and no host callback runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
from flax.traverse_util import flatten_dict

from wush_jax.frontends import rows
from wush_jax.frontends.linen import calls
from wush_jax.layers import stacking
from wush_jax.layers.layer import Layer
from wush_jax.layers.trees import join, plain
from wush_jax.statistics import observation
from wush_jax.statistics.moments import Mask
from wush_jax.statistics.observation import Observation

_OBSERVED = {field.name: f"wush_{field.name}" for field in dataclasses.fields(Observation)}


def observe(
    model: nn.Module,
    variables: Mapping,
    batch: Any,
    mask: Mask | None,
    found: Mapping[str, Layer],
    blocks: Mapping[str, int],
    sample: int,
) -> dict[str, Observation]:
    """Runs the model on a batch and returns what enters the layers in ``blocks``. Jit it.

    Args:
      mask: non-zero where a token counts, [*tokens]; applies to every layer whose input has those
        leading axes (or as many rows), and to no other.
      found: the layers, from `discover`.
      blocks: module path -> D.
      sample: how many tokens to draw.

    Returns:
      module path -> `Observation`, stacked axes moved to the front.
    """

    def intercept(next_fun, args, kwargs, context):
        call = calls.linear_call(context, args, kwargs)
        if call is None or calls.path_of(context.module) not in blocks:
            return next_fun(*args, **kwargs)
        module = context.module
        block = blocks[calls.path_of(module)]
        seen = rows.observe(call.contraction, call.x, block, sample, mask)
        if module.has_variable("params", _OBSERVED["total"]):  # a shared module's second call
            before = Observation(*(module.get_variable("params", v) for v in _OBSERVED.values()))
            seen = observation.combine(before, seen)
        for field, variable in _OBSERVED.items():
            module.put_variable("params", variable, getattr(seen, field))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(intercept):
        _, changed = calls.call_model(model, variables, batch, mutable=calls.mutable_anew())
    flat: dict[str, Any] = flatten_dict(plain(changed)["params"], sep="/")
    observations = {}
    for path in blocks:
        leaves = [flat[join(path, variable)] for variable in _OBSERVED.values()]
        axes = found[path].stack_axes
        observations[path] = Observation(*(stacking.to_front(leaf, axes) for leaf in leaves))
    return observations
