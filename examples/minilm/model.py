"""A BERT encoder in plain Flax Linen, and the sentence embedding read from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class BertConfig:
    """Sizes of the encoder; the defaults are those of all-MiniLM-L6-v2."""

    vocab_size: int = 30522
    hidden_size: int = 384
    layers: int = 6
    heads: int = 12
    mlp_size: int = 1536
    max_positions: int = 512
    token_types: int = 2
    norm_eps: float = 1e-12


def _norm(config: BertConfig, dtype: Any, name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=config.norm_eps, use_fast_variance=False, dtype=dtype, name=name)


class Embeddings(nn.Module):
    """Word, position and token-type embeddings, summed and normalised: ids [B, T] -> [B, T, H]."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array) -> jax.Array:
        c = self.config
        word = nn.Embed(c.vocab_size, c.hidden_size, dtype=self.dtype, name="word")
        position = nn.Embed(c.max_positions, c.hidden_size, dtype=self.dtype, name="position")
        token_type = nn.Embed(c.token_types, c.hidden_size, dtype=self.dtype, name="token_type")
        x = word(ids) + position(jnp.arange(ids.shape[1]))[None] + token_type(jnp.zeros_like(ids))
        return _norm(c, self.dtype, "norm")(x)


class Attention(nn.Module):
    """Multi-head self-attention: x [B, T, H], mask [B, T] (1 = token, 0 = padding) -> [B, T, H]."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        batch, length, _ = x.shape
        heads = (batch, length, c.heads, c.hidden_size // c.heads)
        query = nn.Dense(c.hidden_size, dtype=self.dtype, name="query")(x).reshape(heads)
        key = nn.Dense(c.hidden_size, dtype=self.dtype, name="key")(x).reshape(heads)
        value = nn.Dense(c.hidden_size, dtype=self.dtype, name="value")(x).reshape(heads)

        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / math.sqrt(heads[-1])
        scores = scores.astype(jnp.float32)
        scores = jnp.where(mask[:, None, None, :] > 0, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return nn.Dense(c.hidden_size, dtype=self.dtype, name="output")(mixed)


class Mlp(nn.Module):
    """Two Dense layers around the exact (erf) GELU: [B, T, H] -> [B, T, H]."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Dense(self.config.mlp_size, dtype=self.dtype, name="up")(x)
        x = jax.nn.gelu(x, approximate=False)
        return nn.Dense(self.config.hidden_size, dtype=self.dtype, name="down")(x)


class Layer(nn.Module):
    """One post-norm transformer layer: x [B, T, H], mask [B, T] -> [B, T, H]."""

    config: BertConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        c = self.config
        x = x + Attention(c, self.dtype, name="attention")(x, mask)
        x = _norm(c, self.dtype, "attention_norm")(x)
        x = x + Mlp(c, self.dtype, name="mlp")(x)
        return _norm(c, self.dtype, "mlp_norm")(x)


class BertEncoder(nn.Module):
    """The encoder: ids [B, T], mask [B, T] (1 = token, 0 = padding) -> hidden [B, T, H]."""

    config: BertConfig = BertConfig()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, ids: jax.Array, mask: jax.Array) -> jax.Array:
        x = Embeddings(self.config, self.dtype, name="embeddings")(ids)
        for i in range(self.config.layers):
            x = Layer(self.config, self.dtype, name=f"layer_{i}")(x, mask)
        return x


def sentence_embedding(hidden: jax.Array, mask: jax.Array) -> jax.Array:
    """Mean over the tokens, scaled to unit length: [B, T, H], [B, T] -> [B, H], in float32."""
    hidden = hidden.astype(jnp.float32)
    weight = mask[:, :, None].astype(jnp.float32)
    mean = (hidden * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), 1.0)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)
