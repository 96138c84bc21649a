"""Small Flax Linen models that use every way of composing modules; K is 32 or 64 throughout."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def init(model: nn.Module, *args: Any) -> Any:
    """Variables as ``model.init`` would make them, drawn by NumPy: nothing to compile."""
    rng = np.random.default_rng(0)

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = path[-1].key
        if name in ("kernel", "embedding"):
            return jnp.asarray((rng.normal(size=leaf.shape) / 6).astype(leaf.dtype))
        return jnp.asarray(np.full(leaf.shape, name in ("scale", "var"), leaf.dtype))

    return jax.tree.map_with_path(draw, jax.eval_shape(model.init, jax.random.key(0), *args))


class Mlp(nn.Module):
    """Two Dense layers, as a model author would write them."""

    hidden: int = 64
    dtype: Any = None
    param_dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        h = nn.gelu(nn.Dense(self.hidden, name="up", **options)(x))
        return nn.Dense(x.shape[-1], name="down", use_bias=False, **options)(h)


class Attention(nn.Module):
    """Self-attention whose projections read one array."""

    @nn.compact
    def __call__(self, x):
        q, k, v = (nn.DenseGeneral((2, 16), name=name)(x) for name in ("query", "key", "value"))
        weights = nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / 4)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), name="out")(mixed)


class Block(nn.Module):
    """A residual block in the shape that `nn.scan` wants: carry in, carry out."""

    @nn.compact
    def __call__(self, x, _=None):
        x = x + Attention(name="attention")(nn.LayerNorm()(x))
        return x + Mlp(name="mlp")(nn.LayerNorm()(x)), None


class Unrolled(nn.Module):
    """A stack of blocks, an embedding and a head."""

    layers: int = 2

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, 32, name="embed")(tokens)
        for i in range(self.layers):
            x, _ = Block(name=f"block_{i}")(x)
        return nn.Dense(50, name="lm_head")(nn.LayerNorm()(x))


class Scanned(nn.Module):
    """The same stack by `nn.scan`, its params stacked along ``axis``, optionally rematerialised."""

    layers: int = 3
    axis: int = 0
    remat: bool = False

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, 32, name="embed")(tokens)
        block = nn.remat(Block) if self.remat else Block
        stack = nn.scan(
            block,
            variable_axes={"params": self.axis},
            split_rngs={"params": True},
            length=self.layers,
        )
        x, _ = stack(name="blocks")(x, None)
        return nn.Dense(50, name="lm_head")(nn.LayerNorm()(x))


class Ensemble(nn.Module):
    """Members by `nn.vmap` over params; all see the same input, or one slice each."""

    members: int = 3
    in_axes: Any = None

    @nn.compact
    def __call__(self, x):
        each = nn.vmap(
            Mlp,
            in_axes=self.in_axes,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            axis_size=self.members,
        )
        return each(name="members")(x)


class Experts(nn.Module):
    """Per-expert kernels [E, K, N]: by DenseGeneral's batch dims and by Einsum."""

    @nn.compact
    def __call__(self, x):  # [E, M, 32]
        h = nn.DenseGeneral(64, batch_dims=(0,), name="up")(x)
        return nn.Einsum((3, 64, 32), "emk,ekn->emn", name="down")(nn.relu(h))


class Shared(nn.Module):
    """One Dense called twice, with different inputs, and a branch that reads the first input."""

    @nn.compact
    def __call__(self, x):
        dense = nn.Dense(32, name="twice")
        return dense(nn.relu(dense(x))) + nn.Dense(32, name="once")(x)


class Normed(nn.Module):
    """A model with a collection besides params."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="norm")(x)
        return nn.Dense(32, name="dense")(x)


class Jitted(nn.Module):
    """A sub-module under `nn.jit`, whose traces Flax caches."""

    @nn.compact
    def __call__(self, x):
        return nn.jit(Mlp)(name="mlp")(x)


JittedMlp = nn.jit(Mlp)


class JittedOnce(nn.Module):
    """The same by a class of the module's: Flax keeps its traces as long as the process lives."""

    @nn.compact
    def __call__(self, x):
        return JittedMlp(name="mlp")(x)
