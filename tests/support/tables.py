"""A language model that is no Flax module: its front end, by the protocol alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wush_jax.frontends.captured import Captured
from wush_jax.frontends.mappings import MappingParams
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops.online import linear

VOCABULARY, WIDTH = 23, 32
_CAPTURED = Captured()


class Tables(MappingParams):
    """tokens [B, T] -> gelu(embed[tokens] @ w_in) @ w_out, logits [B, T, V]."""

    def _walk(self, params: Mapping[str, Any], tokens: jax.Array) -> Iterator[Any]:
        """(name, input) of both layers, then the logits."""
        x = params["embed"][tokens]
        for name in ("w_in", "w_out"):
            yield name, x
            w = params[name]
            y = linear(x, w) if isinstance(w, QuantizedKernel) else x @ w
            x = jax.nn.gelu(y) if name == "w_in" else y
        yield x

    def _inputs(self, variables: Mapping[str, Any], batch: Any) -> dict[str, jax.Array]:
        *layers, _ = self._walk(variables["params"], batch)
        return dict(layers)

    def expected(self, variables):
        return frozenset({"w_in", "w_out"})

    def batch(self, batch):
        return jnp.asarray(batch)

    def signature(self, batch):
        return batch.shape

    def discover(self, variables, batch, wanted):
        return _CAPTURED.discover(variables, jax.eval_shape(self._inputs, variables, batch), wanted)

    def observe(self, variables, batch, mask, layers, blocks, sample):
        inputs = self._inputs(variables, batch)
        return _CAPTURED.observe(variables, inputs, mask, layers, blocks, sample)

    def run(self, variables, batch):
        *_, logits = self._walk(variables["params"], batch)
        return logits

    def layer_squares(self, variables, kernels, batch, mask):
        return _CAPTURED.layer_squares(variables, kernels, self._inputs(variables, batch), mask)


def params() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"embed": (VOCABULARY, WIDTH), "w_in": (WIDTH, 64), "w_out": (64, VOCABULARY)}
    return {name: rng.normal(size=s).astype(np.float32) / 4 for name, s in shapes.items()}


def batches(number: int = 2) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, VOCABULARY, (4, 9), dtype=np.int32) for _ in range(number)]
