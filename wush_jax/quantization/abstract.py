"""Quantizing shapes: what `quantize` would return, without weights, data or arithmetic.

A checkpoint can then be restored straight into quantized (and sharded) buffers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from wush_jax.config import Config
from wush_jax.formats import exactness as exponents
from wush_jax.frontends.linen.run import is_variables
from wush_jax.layers import stacking, trees
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.layers.sharding import shardings
from wush_jax.quantization import plan
from wush_jax.quantization.plan import Plan
from wush_jax.quantization.quantize import assemble
from wush_jax.solvers.rtn import rtn


def abstract_quantize(
    params: Mapping[str, Any],
    calib_batches: Iterable[Any],
    *,
    model: nn.Module | None = None,
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
    config = Config() if config is None else config
    variables = trees.plain(params if is_variables(params) else {"params": params})
    variables = jax.tree.map(_struct, variables)
    planned = Plan(config)
    for batch in calib_batches:
        if model is None:
            planned.add(plan.captured_layers(variables["params"], batch))
        else:
            planned.add(planned.reached(model, variables, batch))
    planned.close(variables["params"])
    kernels = trees.kernel_paths(variables["params"])
    replaced = {path: _abstract_kernel(path, kernels[path], planned) for path in planned.layers}
    out = {**variables, "params": trees.replace_kernels(variables["params"], replaced)}
    return out if is_variables(params) else out["params"]


def _abstract_kernel(path: str, kernel: Any, planned: Plan) -> QuantizedKernel:
    layer, config = planned.layers[path], planned.configs[path]
    if config.transform == "auto":
        raise ValueError(
            f"{path}: transform='auto' is decided by data; name the transform by a rule, as "
            "Report.rules() does for a model that was quantized"
        )
    roles = dict.fromkeys("bkn", 1)
    batch = []
    for size, role in zip(layer.kernel_shape, layer.contraction.roles, strict=True):
        roles[role] *= size
        batch += [size] if role == "b" else []
    stacked = stacking.positions(layer.stack_axes, len(kernel.shape))
    lead = (*(kernel.shape[axis] for axis in stacked), *batch)
    features = config.padded(layer.features, path)

    def build() -> QuantizedKernel:
        forward = jnp.zeros((features // config.block, config.block, config.block))
        solution = rtn(jnp.zeros((features, roles["n"])), forward, config)
        act = None if config.act_format is None else jnp.ones((1, 1))
        rows = jnp.zeros((1, 2), jnp.int32)
        solution, act, rows = jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (*lead, *leaf.shape)), (solution, act, rows)
        )
        zero, formats = exponents.Range(0, 0), (config.format, config.act_format)
        held = exponents.choose(zero, zero, *formats)
        exact_in = exponents.exact_in(zero, zero, held, *formats)
        return assemble(solution, act, rows, exact_in, path, planned, str(kernel.dtype))

    quantized = jax.eval_shape(build)
    if isinstance(kernel.sharding, NamedSharding):
        where = shardings(quantized, kernel.sharding, layer, path)
        quantized = jax.tree.map(
            lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s),
            quantized,
            where,
        )
    return quantized


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None)
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf), sharding=sharding)
