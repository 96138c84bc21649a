"""A function and its arguments as a program: traced on shapes, with parameters told by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from wush_jax.frontends.traced.interpret import Handler, Interpreter
from wush_jax.frontends.traced.static import is_array
from wush_jax.frontends.traced.views import View
from wush_jax.frontends.traced.weight import Weight, plain
from wush_jax.layers.quantized_kernel import QuantizedKernel, is_quantized


def struct(leaf: Any) -> jax.ShapeDtypeStruct:
    """Shape and dtype of an array, or of the float array that a `QuantizedKernel` stands for."""
    if is_quantized(leaf):
        return jax.ShapeDtypeStruct(leaf.shape, np.dtype(leaf.dtype))
    weak = bool(getattr(leaf, "weak_type", False))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced function.

    Attributes:
      jaxpr: from the array leaves of the arguments to those of the result.
      result: puts the result together from them.
    """

    jaxpr: ClosedJaxpr
    result: Callable[[list[Any]], Any]

    @classmethod
    def of(cls, function: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any]) -> Program:
        """Traces ``function`` on the shapes of its arguments' arrays."""
        leaves, structure = jax.tree.flatten((args, dict(kwargs)), is_leaf=is_quantized)
        fixed = [None if is_array(leaf) or is_quantized(leaf) else leaf for leaf in leaves]
        data = [struct(leaf) for leaf in leaves if is_array(leaf) or is_quantized(leaf)]
        out: list[Any] = []

        def run(*arrays: Any) -> list[Any]:
            left = iter(arrays)
            own = [
                next(left) if is_array(leaf) or is_quantized(leaf) else constant
                for leaf, constant in zip(leaves, fixed, strict=True)
            ]
            args, kwargs = jax.tree.unflatten(structure, own)
            results, tree = jax.tree.flatten(function(*args, **kwargs))
            traced = [isinstance(each, jax.Array | np.ndarray | np.generic) for each in results]
            kept = [None if t else each for t, each in zip(traced, results, strict=True)]
            out.append((tree, traced, kept))
            return [each for t, each in zip(traced, results, strict=True) if t]

        jaxpr = jax.make_jaxpr(run)(*data)
        ((tree, traced, kept),) = out

        def result(arrays: list[Any]) -> Any:
            left = iter(arrays)
            own = [next(left) if t else each for t, each in zip(traced, kept, strict=True)]
            return jax.tree.unflatten(tree, own)

        return cls(jaxpr, result)

    def run(self, handler: Handler, inputs: list[Any]) -> tuple[Any, Interpreter]:
        """The result, and the interpreter with what the handler recorded.

        Args:
          inputs: the arrays of the arguments, in order; parameters as `Weight`.
        """
        interpreter = Interpreter(handler)
        outputs = interpreter.run(self.jaxpr, inputs)
        return self.result([plain(each) for each in outputs]), interpreter


def weight(name: str, leaf: Any, kernel: QuantizedKernel | None = None) -> Weight:
    """A parameter as an input of a program: a float leaf (and its kernel), or a kernel alone."""
    view = View.whole(name, leaf.shape)
    return Weight(view, None, leaf) if is_quantized(leaf) else Weight(view, leaf, kernel)
