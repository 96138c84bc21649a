"""A Llama-like decoder layer in Flax Linen: what `end_to_end` runs in bf16 and quantized."""

from __future__ import annotations

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels.bench.shapes import Architecture

_THETA = 500_000.0  # Llama-3.1's base of rotary angles (its long-context scaling is left out)


class DecoderLayer(nn.Module):
    """RMSNorm, grouped-query attention with rotary positions, RMSNorm, SwiGLU; all bf16.

    Query, key and value are one `nn.Dense`, gate and up another, as inference engines fuse them.

    Attributes:
      sizes: of the layer.
      attention: implementation of `jax.nn.dot_product_attention` for prefill, "xla" or "cudnn".
    """

    sizes: Architecture
    attention: Literal["xla", "cudnn"] = "xla"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "B T hidden"],
        position: Int[Array, ""] | int = 0,
        cache: tuple[Array, Array] | None = None,
    ) -> tuple[Array, tuple[Array, Array]]:
        """One layer.

        Args:
          x: bf16.
          position: of x's first token.
          cache: keys (rotated) and values [B, S, kv_heads, head_dim] of earlier tokens, all of
            which x's one token sees; None for prefill, where tokens see those before them.

        Returns:
          y, shaped as x, and the keys and values of x's tokens. The cache is read, not copied.
        """
        s = self.sizes
        b, t, _ = x.shape
        rows = self._norm("attention_norm")(x)
        joint = self._dense("qkv", (s.heads + 2 * s.kv_heads) * s.head_dim)(rows)
        joint = joint.reshape(b, t, s.heads + 2 * s.kv_heads, s.head_dim)
        q, k, v = jnp.split(joint, (s.heads, s.heads + s.kv_heads), axis=2)
        positions = position + jnp.arange(t)
        q, k = rotary(q, positions), rotary(k, positions)
        if cache is None:
            mixed = jax.nn.dot_product_attention(
                q, k, v, is_causal=True, implementation=self.attention
            )
        else:
            mixed = attend_one(q, k, v, *cache)
        x = x + self._dense("o", s.hidden)(mixed.reshape(b, t, s.heads * s.head_dim))
        rows = self._norm("mlp_norm")(x)
        gate, up = jnp.split(self._dense("gate_up", 2 * s.intermediate)(rows), 2, axis=-1)
        return x + self._dense("down", s.hidden)(nn.silu(gate) * up), (k, v)

    def _dense(self, name: str, features: int) -> nn.Dense:
        bf16 = jnp.bfloat16
        return nn.Dense(features, use_bias=False, dtype=bf16, param_dtype=bf16, name=name)

    def _norm(self, name: str) -> nn.RMSNorm:
        return nn.RMSNorm(1e-5, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, name=name)


def rotary(x: Float[Array, "B T H d"], positions: Int[Array, " T"]) -> Float[Array, "B T H d"]:
    """Rotates the pairs (i, i + d/2) by position * theta^(-2i/d)."""
    half = x.shape[-1] // 2
    rates = _THETA ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[None, :, None, None].astype(jnp.float32) * rates[None, None, None]
    cos, sin = jnp.cos(angles), jnp.sin(angles)  # [1, T, 1, d/2]
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = (first * cos - second * sin, second * cos + first * sin)
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def attend_one(
    q: Float[Array, "B 1 H d"],
    k: Float[Array, "B 1 h d"],
    v: Float[Array, "B 1 h d"],
    keys: Float[Array, "B S h d"],
    values: Float[Array, "B S h d"],
) -> Float[Array, "B 1 H d"]:
    """One token's attention to S cached tokens and to itself; float32 softmax."""
    b, _, heads, d = q.shape
    groups = q.reshape(b, k.shape[2], heads // k.shape[2], d)
    old = jnp.einsum("bhgd,bshd->bhgs", groups, keys, preferred_element_type=jnp.float32)
    new = jnp.einsum("bhgd,bhd->bhg", groups, k[:, 0], preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(jnp.concatenate([old, new[..., None]], axis=-1) * d**-0.5, axis=-1)
    weights = weights.astype(q.dtype)
    mixed = jnp.einsum("bhgs,bshd->bhgd", weights[..., :-1], values)
    mixed = mixed + weights[..., -1:] * v[:, 0, :, None]
    return mixed.reshape(b, 1, heads, d)
