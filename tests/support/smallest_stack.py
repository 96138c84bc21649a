"""The smallest stack of blocks, as `quantize_blocks` takes it: two of them, of one layer each."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from wush_jax import Config

CONFIG = Config(gauges=1, sample_tokens=32)
KEY = jax.random.key(5)


class Mixing(nn.Module):
    """The smallest block: one layer, without a residual."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(32, use_bias=False, name="mix")(x)


X = jax.random.normal(KEY, (2, 4, 16, 32))
PAIR: Any = {name: {"mix": {"kernel": X[i, :2].reshape(32, 32)}} for i, name in enumerate("ab")}
MIX = {"embed": lambda p, x: x, "blocks": {"a": Mixing(), "b": Mixing()}, "config": CONFIG}
