"""Which front end a model gets: the one table of kinds of models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax import nnx

from wush_jax.frontends.captured import Captured
from wush_jax.frontends.linen.block import LinenBlock
from wush_jax.frontends.linen.front_end import Linen
from wush_jax.frontends.protocol import Block, FrontEnd
from wush_jax.frontends.traced.front_end import Traced


def front_end(model: Any) -> FrontEnd:
    """The front end of a model; one that is passed comes back as it is.

    Args:
      model: a Flax Linen module; None for captured inputs; a `FrontEnd`; or any other function
        ``fn(params, *batch)``.

    Raises:
      ValueError: a model of no known kind.
    """
    if model is None:
        return Captured()
    if isinstance(model, nn.Module):
        return Linen(model)
    if isinstance(model, FrontEnd):
        return model
    if isinstance(model, nnx.Module):
        raise ValueError(
            f"model={type(model).__name__} is a flax.nnx.Module, which holds its params itself: "
            "graphdef, state = nnx.split(module), and pass state as the params and "
            "model=lambda state, *batch: nnx.merge(graphdef, state)(*batch)"
        )
    if callable(model):
        return Traced(model)
    raise ValueError(
        f"model={type(model).__name__}: a flax.linen.Module, a function fn(params, *batch), or a "
        "wush_jax.frontends.protocol.FrontEnd of your own; for any other model capture its "
        "layers' inputs and leave model out"
    )


def block(module: Any, call: Callable[..., Any] | None) -> Block:
    """A block of a stack, called by ``call`` (module, x, *extras), or as it is.

    Raises:
      ValueError: a block of no known kind.
    """
    if isinstance(module, nn.Module):
        return LinenBlock(module.clone(name=None), call)
    raise ValueError(f"blocks holds {type(module).__name__}; each one must be a flax.linen.Module")
