"""Handlers that run the float model and record what its linear layers see, or how far they err."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn

from wush_jax.frontends import rows
from wush_jax.frontends.traced.interpret import Interpreter
from wush_jax.frontends.traced.products import Product
from wush_jax.frontends.traced.records import Key
from wush_jax.frontends.traced.run import entry, layer_axes
from wush_jax.frontends.traced.weight import Weight
from wush_jax.layers import stacking
from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.layers.trees import layer_name
from wush_jax.statistics import observation
from wush_jax.statistics.moments import Mask


class _Float:
    """Products run as they are; nothing but products is of interest."""

    inlines = False

    def read(
        self, run: Interpreter, weight: Weight, inputs: Sequence[Any], eqn: JaxprEqn, why: str
    ) -> list[Any] | None:
        return None


class Observing(_Float):
    """Records `Observation`s of layers' inputs."""

    def __init__(
        self, layers: Mapping[str, Layer], blocks: Mapping[str, int], sample: int, mask: Mask | None
    ):
        self.combine = observation.combine
        self._layers, self._blocks, self._sample, self._mask = layers, blocks, sample, mask

    def product(
        self, run: Interpreter, found: Product, weight: Weight, x: Any, eqn: JaxprEqn
    ) -> Any:
        name = layer_name(weight.view.name)
        if name not in self._blocks:
            return
        axes = stacking.positions(self._layers[name].stack_axes, len(found.view.shape))
        own = found.canonical(x)
        contraction = found.contraction(axes)
        seen = rows.observe(contraction, own, self._blocks[name], self._sample, self._mask)
        for pick, at in reversed(list(zip(found.view.picks, weight.index, strict=True))):
            if pick.kind == "traced":
                seen = _at(seen, at, found.view.shape[pick.axis])
        run.records.add(Key.of(name, found.view, axes), seen)


class Squares(_Float):
    """Records ‖y - xW‖² and ‖xW‖² of quantized layers, as `wush_jax.frontends.rows.squares`."""

    def __init__(
        self,
        weights: Mapping[str, Any],
        kernels: Mapping[str, QuantizedKernel],
        mask: Mask | None,
    ):
        self.combine = jnp.add
        self._weights, self._kernels, self._mask = weights, kernels, mask

    def product(
        self, run: Interpreter, found: Product, weight: Weight, x: Any, eqn: JaxprEqn
    ) -> Any:
        name = layer_name(weight.view.name)
        kernel = self._kernels.get(name)
        if kernel is None:
            return
        axes = layer_axes(kernel)
        matrix = jnp.moveaxis(self._weights[name], axes, range(len(axes)))
        picked = {p.axis: at for p, at in zip(found.view.picks, weight.index, strict=True)}
        for axis in axes:
            matrix = jax.lax.dynamic_index_in_dim(matrix, picked[axis], keepdims=False)
        own, one = found.canonical(x), entry(kernel, found, weight)
        pair = rows.squares(found.contraction(axes), own, matrix, one, self._mask)
        run.records.add(Key(name, (), ()), jnp.stack(pair))


def _at(seen: Any, at: Any, size: int) -> Any:
    """Zeros [size, ...] but for one entry."""
    return jax.tree.map(
        lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype).at[at].set(leaf), seen
    )
