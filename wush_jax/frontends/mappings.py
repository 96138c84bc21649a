"""Params that are trees of mappings, bare or with collections around them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from wush_jax.frontends.protocol import Variables
from wush_jax.layers import trees
from wush_jax.layers.quantized_kernel import QuantizedKernel


class MappingParams:
    """What a front end answers of params alone; leaves of any name."""

    @property
    def name(self) -> str:
        return type(self).__name__

    def variables(self, params: Any, rest: Variables | None = None) -> Variables:
        return {**(rest or {}), **trees.plain(trees.as_variables(params))}

    def holds(self, params: Any) -> frozenset[str]:
        return trees.top_names(params)

    def replaced(self, params: Any, kernels: Mapping[str, QuantizedKernel]) -> Any:
        variables = self.variables(params)
        out = {**variables, "params": trees.replace_kernels(variables["params"], kernels)}
        return out if trees.is_variables(params) else out["params"]

    def weights(self, variables: Variables) -> dict[str, Any]:
        return trees.matrices(variables["params"])

    def expected(self, variables: Variables) -> frozenset[str]:
        """Those of Flax's own modules; leaves of other names may be reached and need not be."""
        return frozenset(trees.flax_weights(variables["params"]))
