"""No model: each batch maps layers' names to the inputs that somebody captured.

The batch is a mapping from a layer's name ("layer_0/mlp/up") to that layer's input [..., K]. Layers
that are given the same array object share their input.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from wush_jax.frontends import rows
from wush_jax.frontends.mappings import MappingParams
from wush_jax.frontends.protocol import Discovery, Variables
from wush_jax.layers import trees
from wush_jax.layers.contraction import Contraction
from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.statistics.moments import Mask
from wush_jax.statistics.observation import Observation


class Captured(MappingParams):
    """The front end of params alone: a tree of mappings, leaves of any name."""

    def batch(self, batch: Any) -> dict[str, Any]:
        if not isinstance(batch, Mapping):
            raise ValueError(
                "without a model each calibration batch maps layers' names to their inputs, "
                f"not {type(batch).__name__}; or pass model="
            )
        arrays = {id(x): x if hasattr(x, "dtype") else jnp.asarray(x) for x in batch.values()}
        return {str(name): arrays[id(x)] for name, x in batch.items()}

    def signature(self, batch: Mapping[str, Any]) -> Hashable:
        first = {id(x): name for name, x in reversed(list(batch.items()))}
        return tuple((n, jnp.shape(x), jnp.result_type(x), first[id(x)]) for n, x in batch.items())

    def discover(
        self, variables: Variables, batch: Mapping[str, Any], wanted: Callable[[str], bool]
    ) -> Discovery:
        paths = {trees.layer_name(path): path for path in trees.leaves(variables["params"])}
        matrices = self.weights(variables)
        found = {}
        for name, x in batch.items():
            if name not in matrices:
                some = ", ".join(list(matrices)[:6])
                raise ValueError(
                    f"{name}: the params hold no kernel of this path; they hold {some}, ..."
                )
            found[name] = _layer(paths[name], x, tuple(matrices[name].shape))
        return Discovery(found)

    def observe(
        self,
        variables: Variables,
        batch: Mapping[str, Any],
        mask: Mask | None,
        layers: Mapping[str, Layer],
        blocks: Mapping[str, int],
        sample: int,
    ) -> dict[str, Observation]:
        return {
            name: rows.observe(layers[name].contraction, batch[name], block, sample, mask)
            for name, block in blocks.items()
        }

    def run(self, variables: Variables, batch: Any) -> Any:
        raise ValueError("captured inputs run no model: pass model=")

    def layer_squares(
        self,
        variables: Variables,
        kernels: Mapping[str, QuantizedKernel],
        batch: Mapping[str, Any],
        mask: Mask | None,
    ) -> dict[str, Array]:
        matrices, found = self.weights(variables), {}
        for name, layer in self.discover(variables, batch, lambda name: True).layers.items():
            if name in kernels:
                own = (layer.contraction, batch[name], matrices[name], kernels[name])
                found[name] = jnp.stack(rows.squares(*own, mask))
        return found


def _layer(path: str, x: Any, shape: tuple[int, ...]) -> Layer:
    """The layer whose weight's leading axes are the trailing axes of x."""
    for axes in range(min(x.ndim, len(shape) - 1), 0, -1):
        if tuple(x.shape[x.ndim - axes :]) == shape[:axes]:
            contracted = tuple(range(x.ndim - axes, x.ndim))
            contraction = Contraction.dense_general(x.ndim, contracted, (), len(shape) - axes)
            return Layer(path, contraction, shape, (id(x),))
    raise ValueError(
        f"{trees.layer_name(path)}: a captured input of shape {tuple(x.shape)} does not fit the "
        f"kernel {shape}; its trailing axes must be the kernel's leading ones"
    )
