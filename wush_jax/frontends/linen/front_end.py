"""`Linen`: the front end of Flax Linen models."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array

from wush_jax.frontends.linen import calls
from wush_jax.frontends.linen.discover import discover
from wush_jax.frontends.linen.observe import observe
from wush_jax.frontends.linen.run import quantized
from wush_jax.frontends.linen.squares import squares
from wush_jax.frontends.mappings import MappingParams
from wush_jax.frontends.protocol import Discovery, Variables
from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.statistics.moments import Mask
from wush_jax.statistics.observation import Observation


class Linen(MappingParams):
    """A model of `flax.linen`; its linear layers are Flax's own modules.

    Params are the bare tree or the whole variables dict. A batch is a tuple of positional
    arguments, a mapping of keyword arguments, or the one argument.
    """

    def __init__(self, model: nn.Module):
        self.model = model

    @property
    def name(self) -> str:
        return type(self.model).__name__

    def batch(self, batch: Any) -> Any:
        return jax.tree.map(jnp.asarray, batch)

    def signature(self, batch: Any) -> Hashable:
        leaves, structure = jax.tree.flatten(batch)
        return structure, tuple((jnp.shape(x), jnp.result_type(x)) for x in leaves)

    def discover(
        self, variables: Variables, batch: Any, wanted: Callable[[str], bool]
    ) -> Discovery:
        return discover(self.model, variables, batch, wanted)

    def observe(
        self,
        variables: Variables,
        batch: Any,
        mask: Mask | None,
        layers: Mapping[str, Layer],
        blocks: Mapping[str, int],
        sample: int,
    ) -> dict[str, Observation]:
        return observe(self.model, variables, batch, mask, layers, blocks, sample)

    def run(self, variables: Variables, batch: Any) -> Any:
        with quantized():
            return calls.call_model(self.model, variables, batch)

    def layer_squares(
        self,
        variables: Variables,
        kernels: Mapping[str, QuantizedKernel],
        batch: Any,
        mask: Mask | None,
    ) -> dict[str, Array]:
        return squares(self.model, variables, kernels, batch, mask)
