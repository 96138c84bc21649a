"""The plot of a sweep: a row of panels a format, a column a figure, a colour a solver."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wush_jax.reporting import figures
from wush_jax.sweeps import rows as rows_lib
from wush_jax.sweeps.rows import COSTS, SweepRow

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
_COLOURS = (
    *(figures.BLUE, figures.ORANGE, figures.GREEN),
    *(figures.PURPLE, figures.SKY, figures.RED),
)
_MARKERS = "oDs^vP"
_SPREAD = 0.36  # of a row's height, over which its solvers lie

# Means of one format: a list a transform, in the order of the panel's rows.
_Groups = Sequence[Sequence[SweepRow]]


def plot_sweep(
    rows: Sequence[SweepRow],
    path: Path,
    *,
    maximize: Collection[str] = (),
    reference: Mapping[str, float] | None = None,
) -> None:
    """Writes a PNG of all figures but costs, with the table's errors; the dashed line is float.

    Perplexity and recovery follow from the loss added and are left to the table where that is
    there: its error is paired.

    Args:
      rows: one for each configuration and seed.
      maximize: figures of which more is better.
      reference: the float model's figures, if known.

    Raises:
      ValueError: no row has a figure.
    """
    means, reference = rows_lib.means(rows), reference or {}
    metrics = _shown(rows)
    if not metrics:
        raise ValueError("nothing to plot: no row has a figure")
    solvers = list(dict.fromkeys(row.solving for row in means))
    by_format: dict[str, dict[str, list[SweepRow]]] = {}
    for row in means:
        by_format.setdefault(row.formats, {}).setdefault(row.label, []).append(row)
    heights = [0.25 + 0.32 * len(labels) for labels in by_format.values()]
    figure = figures.new_figure(1.8 + 2.5 * len(metrics), 1.4 + sum(heights))
    panels = figure.subplots(
        len(by_format),
        len(metrics),
        sharex="col",
        sharey="row",
        squeeze=False,
        height_ratios=heights,
    )
    for (formats, labels), line in zip(by_format.items(), panels, strict=True):
        groups = list(labels.values())
        for axes, metric in zip(line, metrics, strict=True):
            _dots(axes, metric, groups, solvers)
            _axis(axes, metric, means, reference.get(metric, np.nan))
        figures.rows_axis(line[0], list(labels))
        line[0].set_ylabel(formats.replace(", ", ",\n"), fontsize=9)
        _failures(line[0], groups, solvers)
    for axes, metric in zip(panels[-1], metrics, strict=True):
        more = "\nmore is better" if metric in maximize else ""
        axes.set_xlabel(_LABELS.get(metric, metric) + more, fontsize=9)
    handles = dict(zip(*reversed(panels[0, 0].get_legend_handles_labels()), strict=True))
    errors = rows_lib.errors(rows)
    notes = [*["dashed: float model"] * bool(reference), *[f"bars: {errors}"] * bool(errors)]
    style = {"loc": "outside upper center", "fontsize": 8, "title_fontsize": 8}
    figure.legend(handles.values(), handles, ncols=len(handles), title="; ".join(notes), **style)
    figures.save(figure, path)


def _shown(rows: Sequence[SweepRow]) -> list[str]:
    metrics = [name for name in rows_lib.metrics(rows) if name not in COSTS]
    implied = _IMPLIED if "delta_loss" in metrics else ()
    return [name for name in metrics if name not in implied]


def _dots(axes: Axes, metric: str, groups: _Groups, solvers: list[str]) -> None:
    for i, solver in enumerate(solvers):
        found = [
            (position, row)
            for position, row in _positions(groups, solvers)
            if row.solving == solver and metric in row.metrics
        ]
        figures.dots(
            axes,
            [row.metrics[metric] for _, row in found],
            [position for position, _ in found],
            [row.spread.get(metric, np.nan) for _, row in found],
            _COLOURS[i % len(_COLOURS)],
            _MARKERS[i % len(_MARKERS)],
            label=solver,
        )


def _axis(axes: Axes, metric: str, means: Sequence[SweepRow], reference: float) -> None:
    """The scale that suits all formats alike, and the float model's figure."""
    shown = [row for row in means if metric in row.metrics]
    errors = [row.spread.get(metric, np.nan) for row in shown]
    figures.axis(axes, [row.metrics[metric] for row in shown], errors)
    if np.isfinite(reference) and (axes.get_xscale() == "linear" or reference > 0):
        figures.reference_line(axes, reference)


def _failures(axes: Axes, groups: _Groups, solvers: list[str]) -> None:
    for position, row in _positions(groups, solvers):
        if not row.metrics:
            colour = _COLOURS[solvers.index(row.solving) % len(_COLOURS)]
            style = {"color": colour, "fontsize": 7, "va": "center"}
            axes.text(0.02, position, "failed", transform=axes.get_yaxis_transform(), **style)


def _positions(groups: _Groups, solvers: list[str]) -> list[tuple[float, SweepRow]]:
    """Where each configuration lies: the solvers of one transform one below another."""
    step = _SPREAD / max(len(solvers) - 1, 1)
    middle = (len(solvers) - 1) / 2
    return [
        (i + step * (solvers.index(row.solving) - middle), row)
        for i, group in enumerate(groups)
        for row in group
    ]
