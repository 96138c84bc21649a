"""`Traced`: the front end of any function of params and a batch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from wush_jax.frontends.protocol import Discovery, Variables
from wush_jax.frontends.traced import paths
from wush_jax.frontends.traced.discover import assembled, discover
from wush_jax.frontends.traced.observe import Observing, Squares
from wush_jax.frontends.traced.program import Program, weight
from wush_jax.frontends.traced.run import Quantized
from wush_jax.frontends.traced.static import hidden, is_array, shown
from wush_jax.layers import stacking
from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import QuantizedKernel, is_quantized
from wush_jax.layers.trees import layer_name
from wush_jax.statistics.moments import Mask
from wush_jax.statistics.observation import Observation


class Traced:
    """A function ``fn(params, *batch)`` of params that are any pytree.

    A batch is a tuple of positional arguments, a mapping of keyword arguments, or the one argument.
    Leaves of it that are no arrays are constants of the program.
    """

    def __init__(self, function: Callable[..., Any]):
        self.function = function

    @property
    def name(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)

    def variables(self, params: Any, rest: Variables | None = None) -> Variables:
        return {"params": hidden(params)}

    def holds(self, params: Any) -> frozenset[str]:
        return frozenset(path.partition("/")[0] for path in paths.leaves(params))

    def replaced(self, params: Any, kernels: Mapping[str, QuantizedKernel]) -> Any:
        return paths.replaced(params, lambda path, leaf: kernels.get(layer_name(path), leaf))

    def weights(self, variables: Variables) -> dict[str, Any]:
        found = paths.leaves(variables["params"]).items()
        return {layer_name(path): leaf for path, leaf in found if _is_matrix(leaf)}

    def expected(self, variables: Variables) -> frozenset[str]:
        return frozenset(self.weights(variables))

    def batch(self, batch: Any) -> Any:
        return hidden(jax.tree.map(lambda x: jnp.asarray(x) if is_array(x) else x, batch))

    def signature(self, batch: Any) -> Hashable:
        leaves, structure = jax.tree.flatten(batch)
        return structure, tuple((x.shape, x.dtype) for x in leaves)

    def discover(
        self, variables: Variables, batch: Any, wanted: Callable[[str], bool]
    ) -> Discovery:
        program, inputs = self._program(variables, batch)
        return discover(program, inputs, wanted)

    def observe(
        self,
        variables: Variables,
        batch: Any,
        mask: Mask | None,
        layers: Mapping[str, Layer],
        blocks: Mapping[str, int],
        sample: int,
    ) -> dict[str, Observation]:
        program, inputs = self._program(variables, batch)
        _, seen = program.run(Observing(layers, blocks, sample, mask), inputs)
        weights = self.weights(variables)
        shapes = {name: tuple(weights[name].shape) for name in blocks}
        axes = {
            name: (stacking.positions(layers[name].stack_axes, len(shape)), shape)
            for name, shape in shapes.items()
        }
        return assembled(seen.records, axes)

    def run(self, variables: Variables, batch: Any) -> Any:
        program, inputs = self._program(variables, batch)
        return program.run(Quantized(), inputs)[0]

    def layer_squares(
        self,
        variables: Variables,
        kernels: Mapping[str, QuantizedKernel],
        batch: Any,
        mask: Mask | None,
    ) -> dict[str, Array]:
        program, inputs = self._program(variables, batch)
        _, seen = program.run(Squares(self.weights(variables), kernels, mask), inputs)
        return {key.name: value for key, value in seen.records.items()}

    def _program(self, variables: Variables, batch: Any) -> tuple[Program, list[Any]]:
        """The function on a batch, and its inputs, with params as weights."""
        params, batch = shown(variables["params"]), shown(batch)
        args = (params, *batch) if isinstance(batch, tuple) else (params, batch)
        args, kwargs = ((params,), batch) if isinstance(batch, Mapping) else (args, {})
        program = Program.of(self.function, args, kwargs)
        own = [
            weight(path, leaf) if is_quantized(leaf) or _is_matrix(leaf) else leaf
            for path, leaf in paths.leaves(params).items()
            if is_array(leaf) or is_quantized(leaf)
        ]
        rest = [leaf for leaf in jax.tree.leaves((args[1:], kwargs)) if is_array(leaf)]
        return program, [*own, *rest]


def _is_matrix(leaf: Any) -> bool:
    """Whether a leaf can be a layer's weight."""
    if is_quantized(leaf):
        return True
    return is_array(leaf) and leaf.ndim >= 2 and jnp.issubdtype(leaf.dtype, jnp.floating)
