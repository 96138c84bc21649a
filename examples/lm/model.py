"""A Llama-style decoder in plain Flax Linen: RMSNorm, rotary positions, grouped queries, SwiGLU.

Its tokens are bytes, so it needs no tokenizer and its perplexities are per byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

VOCABULARY = 256


@dataclass(frozen=True)
class LmConfig:
    """Sizes of the decoder. Every layer's K (hidden_size, mlp_size) is a multiple of 128.

    Attributes:
      hidden_size, mlp_size, layers: widths of the residual stream and of SwiGLU, and depth.
      heads, kv_heads: query heads, and key/value heads, each read by heads / kv_heads of them.
      context: bytes in a training window.
      dropout: share of each branch's output dropped in training.
      rope_base: wavelengths of the rotary positions run from 2π to nearly 2π·rope_base bytes.
    """

    hidden_size: int
    mlp_size: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    dropout: float = 0.0
    rope_base: float = 10_000.0

    def __post_init__(self):
        for name in ("hidden_size", "mlp_size"):
            if getattr(self, name) % 128:
                raise ValueError(f"{name}={getattr(self, name)}; a multiple of 128 would fit")
        if self.hidden_size % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size}, heads={self.heads}, kv_heads={self.kv_heads}: "
                "heads of an even size and as many for each key/value head would fit"
            )


def rotate(x: Float[Array, "B T H S"], base: float) -> Float[Array, "B T H S"]:
    """Rotary positions: the pair (i, i + S/2) at position t is turned by t·base^(-2i/S).

    The angles are float32 whatever the dtype of ``x``, which comes back in its own.
    """
    length, size = x.shape[1], x.shape[3]
    rates = base ** (-jnp.arange(size // 2, dtype=jnp.float32) / (size // 2))
    angles = jnp.arange(length, dtype=jnp.float32)[:, None] * rates[None]  # [T, S/2]
    cos, sin = jnp.cos(angles)[None, :, None, :], jnp.sin(angles)[None, :, None, :]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1).astype(x.dtype)


def _dense(features: int, dtype: Any, name: str, branch_of: int | None = None) -> nn.Dense:
    """No bias; an output that ends a branch starts small: the residual sums 2·layers of them."""
    variance = 1.0 if branch_of is None else 1 / (2 * branch_of)
    init = nn.initializers.variance_scaling(variance, "fan_in", "truncated_normal")
    return nn.Dense(features, use_bias=False, dtype=dtype, kernel_init=init, name=name)


class Attention(nn.Module):
    """Causal self-attention, [B, T, hidden] -> [B, T, hidden]."""

    config: LmConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        c = self.config
        size = c.hidden_size // c.heads

        def project(name: str, heads: int) -> jax.Array:
            return _dense(heads * size, self.dtype, name)(x).reshape(*x.shape[:2], heads, size)

        query = rotate(project("query", c.heads), c.rope_base)
        key = rotate(project("key", c.kv_heads), c.rope_base)
        value = project("value", c.kv_heads)
        mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
        return _dense(c.hidden_size, self.dtype, "output", c.layers)(mixed.reshape(x.shape))


class Mlp(nn.Module):
    """SwiGLU, [B, T, hidden] -> [B, T, hidden]."""

    config: LmConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"]) -> Float[Array, "B T F"]:
        c = self.config
        gate = nn.silu(_dense(c.mlp_size, self.dtype, "gate")(x))
        up = _dense(c.mlp_size, self.dtype, "up")(x)
        return _dense(c.hidden_size, self.dtype, "down", c.layers)(gate * up)


class Layer(nn.Module):
    """One pre-norm layer, [B, T, hidden] -> [B, T, hidden]."""

    config: LmConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T F"], train: bool = False) -> Float[Array, "B T F"]:
        for branch, name in ((Attention, "attention"), (Mlp, "mlp")):
            normed = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name=f"{name}_norm")(x)
            y = branch(self.config, self.dtype, name=name)(normed)
            x = x + nn.Dropout(self.config.dropout, deterministic=not train)(y)
        return x


class Decoder(nn.Module):
    """The model: bytes [B, T] -> logits of the byte that follows each, [B, T, 256].

    Parameters are float32. ``dtype`` is that of the products between them; logits are float32.
    """

    config: LmConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: Int[Array, "B T"], train: bool = False) -> Float[Array, "B T V"]:
        c = self.config
        x = nn.Embed(VOCABULARY, c.hidden_size, dtype=self.dtype, name="embed")(ids)
        for i in range(c.layers):
            x = Layer(c, self.dtype, name=f"layer_{i}")(x, train)
        x = nn.RMSNorm(epsilon=1e-5, dtype=self.dtype, name="norm")(x)
        return _dense(VOCABULARY, self.dtype, "lm_head")(x).astype(jnp.float32)
