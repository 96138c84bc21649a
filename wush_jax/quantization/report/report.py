"""What quantization did, layer by layer: a table for people, JSON for programs, a plot."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wush_jax.config import LayerConfig, Rule
from wush_jax.reporting.files import write_atomically


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """One layer (one slice of a stack of layers).

    Attributes:
      path: module path, with the index of the slice in brackets if it is one of a stack.
      shares: path of the layer whose transform it shares (itself if alone).
      shape: K, N.
      format, act_format, transform, block: as configured.
      tokens: calibration tokens that entered its second moments.
      predicted, predicted_hadamard: J of the group's transform, and of Hadamard.
      error: ‖y - xW‖² / ‖xW‖² of the quantized layer on the sample tokens.
      error_identity, error_hadamard: the same with those transforms and RTN.
      condition: largest cond(T) of its blocks.
      weight_span, act_span: log2 of the largest over the smallest group scale, weights and sample.
      strength: as configured, or chosen.
      solver: "rtn", "gptq", with "+search" for a scale search.
      online: see `transform_cost`.
      candidates: for transform "auto", each one's score (`fitting.auto`); the least was chosen.
    """

    path: str
    shares: str
    shape: tuple[int, int]
    format: str
    act_format: str | None
    transform: str
    block: int
    tokens: int
    predicted: float
    predicted_hadamard: float
    error: float
    error_identity: float
    error_hadamard: float
    condition: float
    weight_span: float
    act_span: float
    strength: float = 1.0
    solver: str = "rtn"
    online: float = 0.0
    candidates: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Report:
    """All layers.

    Attributes:
      layers: in the order in which they were quantized.
      skipped: module path -> why it stays in floating point.
      unused_rules: patterns of rules that matched no layer.
    """

    layers: tuple[LayerReport, ...]
    skipped: Mapping[str, str]
    unused_rules: tuple[str, ...]

    def mean_error(self, field: str = "error") -> float:
        """Geometric mean over layers of ``error``, ``error_identity`` or ``error_hadamard``."""
        values = [max(getattr(layer, field), 1e-30) for layer in self.layers]
        return math.exp(sum(map(math.log, values)) / len(values))

    def rules(self) -> tuple[Rule, ...]:
        """Rules that repeat the transforms of this run, those that "auto" chose among them."""
        chosen = {re.sub(r"(\[.*\])$", "", layer.path): layer for layer in self.layers}
        return tuple(
            Rule(
                f"^{re.escape(path)}$",
                transform=layer.transform,
                transform_block=layer.block,
                strength=layer.strength,
            )
            for path, layer in chosen.items()
        )

    def table(self) -> Table:
        """A rich table, one row a layer."""
        table = Table(title="Relative output error per layer, on sample calibration tokens")
        table.add_column("layer", no_wrap=True)
        for name in ("K x N", "format", "transform", "tokens", "J", "error", "/ identity"):
            table.add_column(name, justify="right")
        for name in ("/ hadamard", "online", "cond(T)", "span W", "span x"):
            table.add_column(name, justify="right")
        for row in self.layers:
            table.add_row(
                row.path + ("" if row.shares == row.path else " ↑"),
                f"{row.shape[0]} x {row.shape[1]}",
                row.format if row.act_format == row.format else f"{row.format}, {row.act_format}",
                f"{row.transform} {row.block}",
                str(row.tokens),
                f"{row.predicted:.3g}",
                f"{row.error:.5f}",
                _ratio(row.error, row.error_identity),
                _ratio(row.error, row.error_hadamard),
                f"+{100 * row.online:.1f} %",
                f"{row.condition:.1f}",
                f"{row.weight_span:.1f}",
                f"{row.act_span:.1f}",
            )
        table.caption = (
            f"geometric mean {self.mean_error():.5f}, identity "
            f"{self.mean_error('error_identity'):.5f}, Hadamard "
            f"{self.mean_error('error_hadamard'):.5f}; ↑ shares the transform above; "
            "online: the transform's multiplications beside the product's"
        )
        return table

    def __str__(self) -> str:
        console = Console(width=160, record=False, no_color=True)
        with console.capture() as capture:
            console.print(self.table())
            for path, reason in self.skipped.items():
                console.print(f"kept in float: {path} ({reason})", highlight=False)
            for pattern in self.unused_rules:
                console.print(f"rule matched no layer: {pattern!r}", highlight=False)
        return capture.get()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it."""
        return {
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "skipped": dict(self.skipped),
            "unused_rules": list(self.unused_rules),
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; an existing file is replaced as a whole or not at all."""
        text = json.dumps(self.as_dict(), indent=1)
        write_atomically(Path(path), lambda temporary: temporary.write_text(text))

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG of every layer's error against identity and Hadamard (needs matplotlib)."""
        from wush_jax.reporting.figures import plot_layers

        plot_layers(self, Path(path))

    def warn(self) -> None:
        """Warns of rules that matched nothing: a typo there leaves layers at the default."""
        for pattern in self.unused_rules:
            warnings.warn(
                f"rule {pattern!r} matched no layer (or earlier rules took them all)",
                UserWarning,
                stacklevel=3,
            )


def transform_cost(config: LayerConfig, outputs: Sequence[int]) -> float:
    """Multiplications of the online transform, as a share of the products that follow it.

    Each of K features takes D of them for the transform, once for all layers that share it, and N
    for each layer's product: D / ΣN. The identity takes none; Hadamard, by additions, log2 D.
    """
    work = {"identity": 0, "hadamard": config.block.bit_length() - 1}
    return work.get(config.transform, config.block) / sum(outputs)


def _ratio(a: float, b: float) -> str:
    return f"{a / b:.2f}" if b > 0 else "-"
