"""One block of a Flax Linen model as a model of its own that keeps the block's module paths.

Rules match full module paths and reports show them: the block that reads "decoder/layer_0" must
be found there, though nothing else of the model runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn

from wush_jax.frontends.linen.front_end import Linen
from wush_jax.frontends.linen.run import apply
from wush_jax.frontends.protocol import Variables

Call = Callable[..., Any]  # (module, x, *extras) -> the block's output


@dataclasses.dataclass(frozen=True)
class LinenBlock:
    """A Flax Linen module as `wush_jax.frontends.protocol.Block`.

    Attributes:
      module: without a name.
      call: (module, x, *extras) -> x; None for ``module(x, *extras)``.
    """

    module: nn.Module
    call: Call | None

    def at(self, path: str) -> Linen:
        return Linen(placed(self.module, path, self.call))

    def run(self, variables: Variables, inputs: tuple) -> Any:
        return apply(self.module, variables, *inputs, method=self.call)


class Placed(nn.Module):
    """Runs a block at a module path; make it with `placed`.

    Attributes:
      where: module path, "decoder/layer_0".
      run: (name, inputs) -> output of the block, made under that name. A function, for Flax
        would rename a module given as an attribute.
    """

    where: str
    run: Callable[[str, tuple], Any]

    @nn.compact
    def __call__(self, inputs: tuple, tokens: Any = None) -> Any:
        """The block's output on ``inputs``, (x, *extras); the mask ``tokens`` only comes along."""
        name, _, rest = self.where.partition("/")
        return Placed(rest, self.run, name=name)(inputs) if rest else self.run(name, inputs)


def placed(module: nn.Module, path: str, call: Call | None) -> Placed:
    """``module`` reading its params at ``path``, called by ``call``."""

    def run(name: str, inputs: tuple) -> Any:
        block = module.copy(name=name)  # a child of the module that is running
        return block(*inputs) if call is None else call(block, *inputs)

    return Placed(path, run)
