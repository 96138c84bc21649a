"""Quantizing shapes: what `quantize` would return, without weights, data or arithmetic.

A checkpoint can then be restored straight into quantized (and sharded) buffers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from wush_jax.config import Config
from wush_jax.formats import exactness
from wush_jax.frontends import select
from wush_jax.layers import stacking
from wush_jax.layers.quantized_kernel import QuantizedKernel, is_quantized
from wush_jax.layers.sharding import shardings
from wush_jax.quantization.assemble import assemble
from wush_jax.quantization.plan import Plan
from wush_jax.solvers.rtn import rtn


def abstract_quantize(
    params: Any,
    calib_batches: Iterable[Any],
    *,
    model: Any = None,
    config: Config | None = None,
) -> Any:
    """The tree that `wush_jax.quantize` would return, of `jax.ShapeDtypeStruct`.

    What depends on the data is assumed to turn out well: that the weights are exact in the
    narrowest type of their format (`QuantizedKernel.exact_in`).

    Args:
      params: arrays or `jax.ShapeDtypeStruct`, bare params or the whole variables dict. A struct
        with a `NamedSharding` gives quantized leaves with theirs.
      calib_batches: arrays or `jax.ShapeDtypeStruct`; only shapes are looked at.
      model, config: as for `wush_jax.quantize`.

    Raises:
      ValueError: as `wush_jax.quantize`, where shapes alone show it.
    """
    front = select.front_end(model)
    variables = jax.tree.map(_struct, front.variables(params))
    plan = Plan(Config() if config is None else config)
    for batch in calib_batches:
        plan.reach(front, variables, batch)
    plan.close(front.expected(variables))
    weights = front.weights(variables)
    kernels = {name: _abstract_kernel(name, weights[name], plan) for name in plan.layers}
    return jax.tree.map(_struct, front.replaced(params, kernels), is_leaf=is_quantized)


def _abstract_kernel(name: str, weight: Any, plan: Plan) -> QuantizedKernel:
    layer, config = plan.layers[name], plan.configs[name]
    if config.transform == "auto":
        raise ValueError(
            f"{name}: transform='auto' is decided by data; name the transform by a rule, as "
            "Report.rules() does for a model that was quantized"
        )
    stacked = stacking.positions(layer.stack_axes, len(weight.shape))
    lead = (*(weight.shape[axis] for axis in stacked), *layer.batch_shape)
    features = config.padded(layer.features, name)

    def build() -> QuantizedKernel:
        kernel = jnp.zeros((features, layer.outputs), jnp.float32)
        forward = jnp.zeros((features // config.block, config.block, config.block), jnp.float32)
        solution = rtn(kernel, forward, config)
        act = None if config.act_format is None else jnp.ones((1, 1), jnp.float32)
        arrays = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*lead, *leaf.shape)),
            (solution, act, jnp.zeros((1, 2), jnp.int32)),
        )
        zero, formats = exactness.Range(0, 0), (config.format, config.act_format)
        held = exactness.choose(zero, zero, *formats)
        exact_in = exactness.exact_in(zero, zero, held, *formats)
        return assemble(arrays, exact_in, layer, config, plan.shared_input(name), str(weight.dtype))

    quantized = jax.eval_shape(build)
    if isinstance(weight.sharding, NamedSharding):
        where = shardings(quantized, weight.sharding, layer)
        quantized = jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
            quantized,
            where,
        )
    return quantized


def _struct(leaf: Any) -> Any:
    if is_quantized(leaf):
        return leaf
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)
