"""Where a quantized kernel's leaves lie on a mesh, from where the float kernel lay."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from wush_jax.layers import stacking
from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import QuantizedKernel


def shardings(quantized: Any, sharding: NamedSharding, layer: Layer) -> QuantizedKernel:
    """A `QuantizedKernel` of `NamedSharding`: K and N split as the float kernel's are.

    Args:
      quantized: the kernel, of arrays or `jax.ShapeDtypeStruct`.
      sharding: the float kernel's.
      layer: its axes' roles and its stack, and its name, for errors.

    Raises:
      ValueError: K is split more finely than whole blocks and groups, or an axis other than the
        first of several K (or N) axes is split: codes cannot be laid out that way.
    """
    ndim = len(layer.kernel_shape) + len(layer.stack_axes)
    spec = tuple(sharding.spec) + (None,) * (ndim - len(sharding.spec))
    stack_axes = stacking.positions(layer.stack_axes, ndim)
    stack = [spec[axis] for axis in stack_axes]
    own = [name for axis, name in enumerate(spec) if axis not in stack_axes]
    names: dict[str, list[Any]] = {"b": [], "k": [], "n": []}
    for role, name in zip(layer.contraction.roles, own, strict=True):
        names[role].append(name)
    for role in "kn":
        if any(name is not None for name in names[role][1:]):
            raise ValueError(
                f"{layer.name}: the kernel {layer.kernel_shape} is split as {sharding.spec}; of "
                f"several {role.upper()} axes only the first can be split in a quantized kernel"
            )
    k, n = names["k"][0], names["n"][0] if names["n"] else None
    parts = _parts(sharding, k)
    units = quantized.padded_features // max(quantized.block, quantized.format.group_size)
    if units % parts:
        raise ValueError(
            f"{layer.name}: K={quantized.features} is split {parts} ways over {k!r}, leaving "
            f"no whole blocks of {quantized.block} and groups of {quantized.format.group_size} to "
            f"each; split it at most {math.gcd(units, parts)} ways, or split N"
        )

    def on(*trailing: Any) -> NamedSharding:
        leaf = [*names["b"], *trailing]
        where = stacking.positions(layer.stack_axes, len(leaf) + len(stack))
        for axis, name in sorted(zip(where, stack, strict=True), key=lambda pair: pair[0]):
            leaf.insert(axis, name)
        return NamedSharding(sharding.mesh, PartitionSpec(*leaf))

    return dataclasses.replace(
        quantized,
        codes=on(n, k),
        scales=on(n, k),
        global_scale=on(None, None),
        act_global_scale=None if quantized.act_global_scale is None else on(None, None),
        exponents=None if quantized.exponents is None else on(None, None),
        transform=None if quantized.transform is None else on(k, None, None),
    )


def place(quantized: QuantizedKernel, kernel: Any, layer: Layer) -> QuantizedKernel:
    """``quantized`` laid out as ``kernel`` was, if that was on a mesh."""
    sharding = getattr(kernel, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return quantized
    return jax.device_put(quantized, shardings(quantized, sharding, layer))


def _parts(sharding: NamedSharding, name: Any) -> int:
    axes = () if name is None else name if isinstance(name, tuple) else (name,)
    return math.prod(sharding.mesh.shape[axis] for axis in axes)
