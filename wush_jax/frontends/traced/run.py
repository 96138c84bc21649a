"""`wush_jax.quantized`: a function whose arguments may hold quantized weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
from jax.extend.core import JaxprEqn

from wush_jax.frontends.traced import jaxprs, paths
from wush_jax.frontends.traced.interpret import Interpreter
from wush_jax.frontends.traced.products import Product
from wush_jax.frontends.traced.program import Program, weight
from wush_jax.frontends.traced.static import hidden, is_array, shown
from wush_jax.frontends.traced.weight import Weight
from wush_jax.layers import stacking
from wush_jax.layers.quantized_kernel import QuantizedKernel, is_quantized
from wush_jax.ops import online


def quantized(
    function: Callable[..., Any], *, implementation: str | None = None
) -> Callable[..., Any]:
    """``function``, taking `QuantizedKernel`s wherever it takes the arrays that they stand for.

        qparams = wush_jax.quantize(params, batches, model=function)
        y = jax.jit(wush_jax.quantized(function))(qparams, x)

    A transformation of functions, like `jax.vmap`: the function is traced on float shapes, and its
    products with quantized weights run quantized. It composes with jit, grad (of what is float),
    vmap and scan. Called without a jit around it, it is compiled once for equal shapes.

    Args:
      function: any function of pytrees. Leaves that are no arrays (flags, strings, functions) are
        constants; they must be hashable.
      implementation: None for the best one on this device, or a name in
        `wush_jax.ops.online.IMPLEMENTATIONS`.

    Returns:
      A function of the same arguments, with the same result.

    Raises:
      ValueError: the program reads a quantized weight otherwise than in the products that it was
        quantized for; the message names the weight and the operation.
      NotImplementedError: the named implementation cannot run a layer here; the message says why.
    """

    def run(arguments: Any) -> Any:
        args, kwargs = shown(arguments)
        program = Program.of(function, args, kwargs)
        inputs = [
            weight(path, leaf) if is_quantized(leaf) else leaf
            for path, leaf in paths.leaves((args, kwargs)).items()
            if is_quantized(leaf) or is_array(leaf)
        ]
        return hidden(program.run(Quantized(implementation), inputs)[0])

    compiled = jax.jit(run)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return shown(compiled(hidden((args, kwargs))))

    return call


class Quantized:
    """The handler that runs products with quantized kernels."""

    inlines = False
    combine = None

    def __init__(self, implementation: str | None = None):
        self._implementation = implementation
        self._encoded: dict[Hashable, Any] = {}  # of inputs that several layers share

    def product(
        self, run: Interpreter, found: Product, weight: Weight, x: Any, eqn: JaxprEqn
    ) -> Any:
        kernel = weight.kernel
        if kernel is None:
            return None
        layers = layer_axes(kernel)
        kernel = entry(kernel, found, weight)
        contraction = found.contraction(layers)
        if contraction.roles != kernel.roles:
            raise ValueError(
                f"{weight.view.name}: this call contracts the axes of the weight "
                f"{weight.view.shape} as {contraction.roles}; it was quantized for {kernel.roles}"
            )
        rows = contraction.rows(found.canonical(x))
        encoded = self._encode(run, rows, kernel, x, weight)
        dtype = jaxprs.aval(eqn.outvars[0]).dtype
        y = online.matmul(encoded, kernel, dtype, implementation=self._implementation)
        return found.output(contraction.output(y, kernel.kernel_shape), layers)

    def read(
        self, run: Interpreter, weight: Weight, inputs: Sequence[Any], eqn: JaxprEqn, why: str
    ) -> list[Any] | None:
        if weight.kernel is None:
            return None
        name = weight.view.name
        raise ValueError(
            f"{name}: this weight is quantized for products, and the program also reads it by "
            f"{why}; keep it in float: Rule({name!r}, skip=True)"
        )

    def _encode(
        self, run: Interpreter, rows: Any, kernel: QuantizedKernel, x: Any, weight: Weight
    ) -> Any:
        if kernel.shared_input is None:
            return online.encode(rows, kernel, implementation=self._implementation)
        picked = tuple(at if isinstance(at, int) else id(at) for at in weight.index)
        key = (run.source(x), x.dtype, rows.shape, kernel.shared_input, picked)
        if key not in self._encoded:
            self._encoded[key] = online.encode(rows, kernel, implementation=self._implementation)
        return self._encoded[key]


def layer_axes(kernel: QuantizedKernel) -> tuple[int, ...]:
    """Axes of the whole parameter along which layers are stacked."""
    return stacking.positions(kernel.stack_axes, kernel.ndim)


def entry(kernel: QuantizedKernel, found: Product, weight: Weight) -> QuantizedKernel:
    """The kernel of the one layer that a product reads."""
    picked = {pick.axis: at for pick, at in zip(found.view.picks, weight.index, strict=True)}
    indices = [picked[axis] for axis in layer_axes(kernel)]
    if not indices:
        return kernel

    def one(leaf: Any) -> Any:
        leaf = stacking.to_front(leaf, kernel.stack_axes)
        for at in indices:
            leaf = jax.lax.dynamic_index_in_dim(leaf, at, keepdims=False)
        return leaf

    return jax.tree.map(one, kernel)
