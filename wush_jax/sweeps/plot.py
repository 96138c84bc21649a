"""The plot of a sweep: a row of panels a format, a column a figure, a colour a solver."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wush_jax.reporting import figures as plot
from wush_jax.sweeps.result import COSTS, Sweep, SweepRow

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LABELS = {
    "layer_error": "layer error\n‖y - xW‖² / ‖xW‖²",
    "delta_loss": "loss added\n(nats a token)",
    "kl": "KL to float\n(nats a token)",
    "top1": "top-1 agreement\n(share of tokens)",
    "recovery": "recovery (%)",
}
_IMPLIED = ("perplexity", "recovery")  # by delta_loss, whose error is paired
_COLOURS = (plot.BLUE, plot.ORANGE, plot.GREEN, plot.PURPLE, plot.SKY, plot.RED)
_MARKERS = "oDs^vP"
_SPREAD = 0.36  # of a row's height, over which its solvers lie


def plot_sweep(sweep: Sweep, path: Path) -> None:
    """Writes a PNG of all figures but costs, with the table's errors; the dashed line is float.

    Perplexity and recovery follow from the loss added and are left to the table where that is
    there: its error is paired.

    Raises:
      ValueError: the sweep holds no figures.
    """
    means = sweep.means()
    metrics = [name for name in sweep.metrics() if name not in COSTS]
    if "delta_loss" in metrics:
        metrics = [name for name in metrics if name not in _IMPLIED]
    if not metrics:
        raise ValueError("nothing to plot: no row has a figure")
    solvers = list(dict.fromkeys(row.solving for row in means))
    by_format: dict[str, dict[str, list[SweepRow]]] = {}
    for row in means:
        by_format.setdefault(row.formats, {}).setdefault(row.label, []).append(row)
    heights = [0.25 + 0.32 * len(labels) for labels in by_format.values()]
    figure = plot.new_figure(1.8 + 2.5 * len(metrics), 1.4 + sum(heights))
    panels = figure.subplots(
        len(by_format),
        len(metrics),
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=heights,
    )
    for (formats, labels), line in zip(by_format.items(), panels, strict=True):
        for axes, metric in zip(line, metrics, strict=True):
            _panel(axes, metric, list(labels.values()), solvers)
            reference = sweep.reference.get(metric, np.nan)
            shown = [row for row in means if metric in row.metrics]
            errors = [row.spread.get(metric, np.nan) for row in shown]
            plot.axis(axes, [row.metrics[metric] for row in shown], errors)
            if np.isfinite(reference) and (axes.get_xscale() == "linear" or reference > 0):
                axes.axvline(reference, color=plot.GREY, linestyle="--", linewidth=1)
        plot.rows_axis(line[0], list(labels))
        line[0].set_ylabel(formats.replace(", ", ",\n"), fontsize=9)
        _failures(line[0], list(labels.values()), solvers)
    for axes, metric in zip(panels[-1], metrics, strict=True):
        more = "\nmore is better" if metric in sweep.maximize else ""
        axes.set_xlabel(_LABELS.get(metric, metric) + more, fontsize=9)
    handles = dict(zip(*reversed(panels[0, 0].get_legend_handles_labels()), strict=True))
    key = ["dashed: float model"] if sweep.reference else []
    key += [f"bars: {sweep.errors()}"] if sweep.errors() else []
    figure.legend(
        handles.values(),
        handles,
        loc="outside upper center",
        ncols=len(handles),
        fontsize=8,
        title="; ".join(key),
        title_fontsize=8,
    )
    plot.save(figure, path)


def _panel(axes: Axes, metric: str, rows: list[list[SweepRow]], solvers: list[str]) -> None:
    for i, solver in enumerate(solvers):
        found = [
            (position, row)
            for position, row in _positions(rows, solvers)
            if row.solving == solver and metric in row.metrics
        ]
        plot.dots(
            axes,
            [row.metrics[metric] for _, row in found],
            [position for position, _ in found],
            [row.spread.get(metric, np.nan) for _, row in found],
            _COLOURS[i % len(_COLOURS)],
            _MARKERS[i % len(_MARKERS)],
            label=solver,
        )


def _failures(axes: Axes, rows: list[list[SweepRow]], solvers: list[str]) -> None:
    for position, row in _positions(rows, solvers):
        if not row.metrics:
            colour = _COLOURS[solvers.index(row.solving) % len(_COLOURS)]
            where = axes.get_yaxis_transform()
            axes.text(
                0.02, position, "failed", transform=where, color=colour, fontsize=7, va="center"
            )


def _positions(rows: list[list[SweepRow]], solvers: list[str]) -> list[tuple[float, SweepRow]]:
    """Where each configuration lies: the solvers of one transform one below another."""
    step = _SPREAD / max(len(solvers) - 1, 1)
    middle = (len(solvers) - 1) / 2
    return [
        (i + step * (solvers.index(row.solving) - middle), row)
        for i, group in enumerate(rows)
        for row in group
    ]
