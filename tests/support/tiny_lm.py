"""The smallest language model of the examples, and params for any size of it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from examples.lm.model import Decoder, LmConfig

# All kernels but the head's are 128 x 128, so that they share what is compiled.
TINY = LmConfig(hidden_size=128, mlp_size=128, layers=1, heads=4, kv_heads=4, context=32)


def shapes(config: LmConfig) -> Any:
    window = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return jax.eval_shape(Decoder(config).init, jax.random.key(0), window)["params"]


def random_params(config: LmConfig, seed: int = 0) -> Any:
    """Values that bfloat16 cannot hold, of the sizes of `config`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0])).astype(np.float32),
        shapes(config),
    )
