"""What quantization did, layer by layer: a table for people, JSON for programs, a plot."""

from __future__ import annotations

import dataclasses
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from wush_jax.config import Rule
from wush_jax.quantization.report.plot import plot_layers
from wush_jax.quantization.report.rows import COMPARED, LayerReport, errors, mean_error
from wush_jax.reporting.files import plain_json, write_json
from wush_jax.reporting.tables import as_text


@dataclasses.dataclass(frozen=True)
class Report:
    """All layers: what quantization did to each, and what stayed in floating point.

    The predicted loss J is that of arXiv 2512.00956; errors are the true quantizer's, measured.

    Attributes:
      layers: in the order in which they were quantized.
      skipped: module path -> why it stays in floating point.
      unused_rules: patterns of rules that matched no layer.
    """

    layers: tuple[LayerReport, ...]
    skipped: Mapping[str, str]
    unused_rules: tuple[str, ...]

    def mean_error(self, field: str = "error") -> float:
        """Geometric mean over layers of one of their errors.

        Args:
          field: "error", "error_identity" or "error_hadamard".

        Raises:
          ValueError: the comparison with identity or Hadamard was not asked for, or there is no
            layer.
        """
        return mean_error(self.layers, field)

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
                row.formats,
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
        if not self.layers:
            return table
        means = [f"geometric mean {self.mean_error():.5f}"]
        for field, name in COMPARED.items():
            if errors(self.layers, field) is not None:
                means.append(f"{name} {self.mean_error(field):.5f}")
        table.caption = (
            f"{', '.join(means)}; ↑ shares the transform above; "
            "online: the transform's multiplications beside the product's"
        )
        return table

    def __str__(self) -> str:
        kept = [f"kept in float: {path} ({reason})" for path, reason in self.skipped.items()]
        unused = [f"rule matched no layer: {pattern!r}" for pattern in self.unused_rules]
        return as_text(self.table(), *kept, *unused)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it; a figure that is not finite is None."""
        return plain_json(dataclasses.asdict(self))

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; an existing file is replaced as a whole or not at all."""
        write_json(Path(path), self.as_dict())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG of every layer's error against identity and Hadamard.

        Raises:
          ValueError: there is no layer.
          ImportError: matplotlib is not installed.
        """
        plot_layers(self.layers, Path(path))

    def warn(self) -> None:
        """Warns of rules that matched nothing: a typo there leaves layers at the default."""
        for pattern in self.unused_rules:
            warnings.warn(
                f"rule {pattern!r} matched no layer (or earlier rules took them all)",
                UserWarning,
                stacklevel=3,
            )


def _ratio(a: float, b: float | None) -> str:
    return f"{a / b:.2f}" if b is not None and b > 0 else "-"
