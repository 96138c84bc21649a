"""What `wush_jax.sweep` found: rows of figures, as a table, JSON and a plot."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from wush_jax.evaluation.result import Evaluations
from wush_jax.reporting.files import plain_json, write_json
from wush_jax.reporting.tables import as_text, plus_minus
from wush_jax.sweeps import rows as rows_lib
from wush_jax.sweeps.plot import plot_sweep
from wush_jax.sweeps.rows import COSTS, SweepRow

_HEADINGS = {
    "layer_error": "layer error",
    "delta_loss": "Δ loss",
    "kl": "KL",
    "top1": "top-1",
    "recovery": "recovery %",
    "bits": "bits/weight",
    "bytes": "MB",
}


@dataclasses.dataclass(frozen=True, eq=False)
class Sweep:
    """All rows.

    Attributes:
      rows: one for each configuration and seed.
      maximize: figures of which more is better; of all others less is.
      reference: the float model's figures, if known.
      evaluations: of a `wush_jax.TokenScore`, by the rows' names (with " #seed" if there are
        several); its ``difference`` compares two configurations over the same sequences.
    """

    rows: tuple[SweepRow, ...]
    maximize: frozenset[str]
    reference: Mapping[str, float] = dataclasses.field(default_factory=dict)
    evaluations: Evaluations | None = None

    def means(self) -> tuple[SweepRow, ...]:
        """One row for each configuration: its mean over the seeds that did not fail."""
        return rows_lib.means(self.rows)

    def metrics(self) -> tuple[str, ...]:
        """Names of all figures, costs last."""
        return rows_lib.metrics(self.rows)

    def best(self, metric: str, formats: str | None = None) -> SweepRow:
        """The configuration with the best mean of ``metric``, of all or of those of ``formats``.

        Args:
          metric: name of a figure.
          formats: as the table has them ("mxfp4/wush"), or a weights' format whatever its scale
            rule ("mxfp4").

        Raises:
          ValueError: there is no such figure there.
        """
        rows = self._with(metric, formats)
        if not rows:
            known = ", ".join(dict.fromkeys(row.formats for row in self.rows))
            raise ValueError(
                f"no row has a figure {metric!r} (formats: {formats or 'any'}); there are "
                f"{', '.join(self.metrics())}, of {known}"
            )
        sign = -1 if metric in self.maximize else 1
        return min(rows, key=lambda row: sign * row.metrics[metric])

    def _with(self, metric: str, formats: str | None = None) -> list[SweepRow]:
        """Means that have a finite figure of that name."""
        rows = [
            row
            for row in self.means()
            if formats in (None, row.formats, row.format.partition("/")[0])
        ]
        return [row for row in rows if np.isfinite(row.metrics.get(metric, np.nan))]

    def table(self) -> Table:
        """A rich table, one row a configuration; the best of each format and figure in bold."""
        means, metrics = self.means(), self.metrics()
        seeds = len({row.seed for row in self.rows})
        table = Table(title=f"{len(means)} configurations" + f", {seeds} seeds" * (seeds > 1))
        table.add_column("format", no_wrap=True)
        named = any(row.name == row.label for row in means)
        table.add_column("configuration" if named else "transform", no_wrap=True)
        table.add_column("D", justify="right")
        table.add_column("solver", no_wrap=True)
        for metric in metrics:
            more = " ↑" if metric in self.maximize else ""
            table.add_column(escape(_HEADINGS.get(metric, metric)) + more, justify="right")
        best = {
            (formats, metric): self.best(metric, formats).name
            for formats in {row.formats for row in means}
            for metric in metrics
            if self._with(metric, formats)
        }
        if self.reference:
            cells = [_cell(metric, self.reference.get(metric), None) for metric in metrics]
            table.add_row("float", "", "", "", *cells, end_section=True)
        for i, row in enumerate(means):
            cells = []
            for metric in metrics:
                cell = _cell(metric, row.metrics.get(metric), row.spread.get(metric))
                bold = metric not in COSTS and best.get((row.formats, metric)) == row.name
                cells.append(f"[bold]{cell}[/bold]" if bold else cell)
            if row.failed is not None and not row.metrics:
                cells[:1] = ["failed"]
            last = i + 1 < len(means) and means[i + 1].formats != row.formats
            head = (row.formats, escape(row.label), str(row.block), row.solving)
            table.add_row(*head, *cells, end_section=last)
        notes = ["best of each format in bold", f"± {self.errors()}" if self.errors() else ""]
        failures = {row.name: row.failed for row in self.rows if row.failed is not None}
        notes += [escape(f"{name} failed: {why}") for name, why in failures.items()]
        table.caption = "\n".join(filter(None, notes))
        return table

    def errors(self) -> str:
        """What the ``spread`` of `means` is, in words; empty if there is none."""
        return rows_lib.errors(self.rows)

    def __str__(self) -> str:
        return as_text(self.table(), width=200)

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it; a figure that is not finite is None."""
        return plain_json(
            {
                "rows": [dataclasses.asdict(row) for row in self.rows],
                "means": [dataclasses.asdict(row) for row in self.means()],
                "best": {
                    metric: self.best(metric).name
                    for metric in self.metrics()
                    if metric not in COSTS and self._with(metric)
                },
                "maximize": sorted(self.maximize),
                "reference": dict(self.reference),
                "evaluations": None if self.evaluations is None else self.evaluations.as_dict(),
            }
        )

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; an existing file is replaced as a whole or not at all."""
        write_json(Path(path), self.as_dict())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG: a panel a figure, a row a transform, a colour a solver.

        Raises:
          ValueError: there is no figure to plot.
          ImportError: matplotlib is not installed.
        """
        plot_sweep(self.rows, Path(path), maximize=self.maximize, reference=self.reference)


def _cell(metric: str, value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    if metric in COSTS:
        return {"bits": f"{value:.2f}", "bytes": f"{value / 1e6:.3g}"}.get(metric, f"{value:.1f}")
    return plus_minus(value, spread)
