"""Which code runs each quantized layer on this device, and why."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from rich.console import Console
from rich.table import Table

from wush_jax.layers import trees
from wush_jax.ops import device, dispatch
from wush_jax.ops.implementations.table import IMPLEMENTATIONS


@dataclasses.dataclass(frozen=True)
class LayerExplanation:
    """One layer's formats, storage and implementation.

    Attributes:
      path: the layer's name.
      shape: of the float kernel, stacked axes included.
      format, act_format: of weights and activations (None: kept in float).
      transform: name and D.
      implementation: name in `wush_jax.ops.online.IMPLEMENTATIONS`.
      reason: why this one, and why not those that are asked before it.
      products: what runs, by the number of tokens, fewest first.
      nbytes: of the quantized kernel, its transform included.
    """

    path: str
    shape: tuple[int, ...]
    format: str
    act_format: str | None
    transform: str
    implementation: str
    reason: str
    products: tuple[str, ...]
    nbytes: int


@dataclasses.dataclass(frozen=True)
class Explanation:
    """All quantized layers of a model. Printing it prints a table."""

    device: str
    layers: tuple[LayerExplanation, ...]

    def __str__(self) -> str:
        table = Table(title=f"Quantized layers on {self.device}")
        for name in ("layer", "kernel", "weights", "activations", "transform", "runs as", "why"):
            table.add_column(name, overflow="fold")
        for row in self.layers:
            table.add_row(
                row.path,
                " x ".join(map(str, row.shape)),
                row.format,
                row.act_format or "float",
                row.transform,
                row.implementation,
                row.reason,
            )
        console = Console(width=150, no_color=True)
        with console.capture() as capture:
            console.print(table)
            kinds = dict.fromkeys((row.implementation, row.products) for row in self.layers)
            for name, products in kinds:
                console.print(f"{name}: {'; '.join(products)}", highlight=False)
        return capture.get()


def explain(
    qparams: Any,
    *,
    implementation: str | None = None,
    dtype: DTypeLike = jnp.bfloat16,
) -> Explanation:
    """Says what each quantized layer of ``qparams`` gets on the default device, and why.

    Args:
      qparams: quantized params, or the whole variables dict; concrete or abstract.
      implementation: as for `wush_jax.apply`.
      dtype: of the activations.

    Raises:
      ValueError: nothing in ``qparams`` is quantized.
      NotImplementedError: the named implementation cannot run some layer here.
    """
    kernels = trees.quantized_kernels(qparams)
    if not kernels:
        raise ValueError("no quantized kernel in these params; make them with wush_jax.quantize")
    here = device.default_device()
    rows = []
    for path, kernel in kernels.items():
        choice = dispatch.choose(kernel, here, implementation, jnp.dtype(dtype))
        regimes = IMPLEMENTATIONS[choice.implementation].regimes(kernel)
        rows.append(
            LayerExplanation(
                path=path,
                shape=kernel.shape,
                format=str(kernel.format),
                act_format=None if kernel.act_format is None else str(kernel.act_format),
                transform=f"{kernel.transform_name} {kernel.block}",
                implementation=choice.implementation,
                reason=choice.reason,
                products=tuple(map(str, regimes)),
                nbytes=kernel.nbytes,
            )
        )
    return Explanation(jax.devices()[0].device_kind, tuple(rows))
