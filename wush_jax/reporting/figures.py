"""Plots of layers and of evaluations. Matplotlib is imported only when a plot is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wush_jax.evaluation.result import FLOAT
from wush_jax.reporting.files import write_atomically
from wush_jax.reporting.tables import plus_minus

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from wush_jax.evaluation.result import Evaluations
    from wush_jax.quantization.report.report import Report

# Okabe-Ito colours: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, GREY = "#56B4E9", "#D55E00", "#999999"

_LAYER_SERIES = (
    ("error_identity", "identity", GREY, "o"),
    ("error_hadamard", "hadamard", ORANGE, "s"),
    ("error", None, BLUE, "D"),
)
_EVALUATION_PANELS = (
    ("delta_loss", 1, "loss added to the float model's\n(nats a token)"),
    ("kl", 1, "KL to the float model\n(nats a token)"),
    ("top1", 100, "top-1 agreement with it\n(% of tokens)"),
)


def plot_layers(report: Report, path: Path) -> None:
    """Writes a PNG: a row a layer, relative output error on a log axis, three transforms."""
    names = [layer.path for layer in report.layers]
    chosen = "/".join(sorted({layer.transform for layer in report.layers}))
    figure = new_figure(8, 1.4 + 0.19 * len(names))
    axes = figure.add_subplot()
    positions = range(len(names))
    for field, label, colour, marker in _LAYER_SERIES:
        values = [getattr(layer, field) for layer in report.layers]
        mean = report.mean_error(field)
        text = f"{label or chosen} (geometric mean {mean:.4f})"
        axes.plot(values, positions, marker, color=colour, label=text, markersize=4)
    axes.hlines(
        list(positions),
        [layer.error for layer in report.layers],
        [layer.error_hadamard for layer in report.layers],
        color=BLUE,
        linewidth=0.8,
        alpha=0.5,
    )
    axes.set_yticks(list(positions), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("relative output error, ‖y - xW‖² / ‖xW‖²")
    axes.grid(axis="x", which="both", alpha=0.25)
    figures = sorted({layer.format for layer in report.layers})
    figure.legend(loc="outside upper center", fontsize=8, title=", ".join(figures))
    save(figure, path)


def plot_evaluations(evaluations: Evaluations, path: Path) -> None:
    """Writes a PNG: a row a candidate; loss added, KL and top-1 agreement, with standard errors.

    Loss added, not perplexity, has a panel: its error is paired, so that bars that miss zero mean
    what they seem to. Perplexities stand beside the names.

    Raises:
      ValueError: there is no candidate.
    """
    rows = {name: row for name, row in evaluations.items() if name != FLOAT}
    if not rows:
        raise ValueError("nothing to plot: there is no candidate beside the float model")
    figure = new_figure(10, 1.5 + 0.42 * len(rows))
    panels = figure.subplots(1, len(_EVALUATION_PANELS), sharey=True)
    for axes, (field, scale, label) in zip(panels, _EVALUATION_PANELS, strict=True):
        values = [scale * getattr(row, field) for row in rows.values()]
        errors = [scale * getattr(row, f"{field}_se") for row in rows.values()]
        dots(axes, values, range(len(rows)), errors, BLUE, "o")
        axis(axes, values, errors)
        if field == "delta_loss":
            axes.axvline(0, color=GREY, linestyle="--", linewidth=1)
        axes.set_xlabel(label, fontsize=9)
    names = [f"{name}\nperplexity {row.perplexity:.4g}" for name, row in rows.items()]
    rows_axis(panels[0], names)
    reference = evaluations[FLOAT]
    figure.suptitle(
        f"{reference.tokens:,} tokens in {reference.sequences:,} sequences; float model: "
        f"perplexity {plus_minus(reference.perplexity, reference.perplexity_se)}; "
        "bars: standard errors",
        fontsize=9,
    )
    save(figure, path)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches, tied to no window.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'wush-jax[examples]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG; an existing file is replaced as a whole or not at all."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))


def dots(
    axes: Axes,
    values: Sequence[float],
    positions: Iterable[float],
    errors: Sequence[float],
    colour: str,
    marker: str,
    label: str | None = None,
) -> None:
    """Values to the right, rows downwards; where an error is NaN or 0 there is no bar."""
    bars = np.nan_to_num(np.asarray(errors, float), nan=0, posinf=0)
    style = {"markersize": 5, "capsize": 2.5, "elinewidth": 1, "color": colour}
    axes.errorbar(values, list(positions), xerr=bars, fmt=marker, label=label, **style)


def axis(axes: Axes, values: Sequence[float], errors: Sequence[float]) -> None:
    """A log axis for values that span a decade, above zero by more than their errors.

    A grid, too, and few enough ticks to read.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    finite = [value for value in values if np.isfinite(value)]
    lowest = np.nanmin(np.asarray(values) - np.nan_to_num(errors), initial=np.inf)
    axes.grid(axis="x", alpha=0.3)
    axes.tick_params(labelsize=8)
    if not finite or lowest <= 0 or max(finite) < 10 * min(finite):
        axes.xaxis.set_major_locator(MaxNLocator(4))
    else:
        axes.set_xscale("log")
        subs = (1, 3) if max(finite) < 100 * min(finite) else (1,)
        axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=5))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))


def rows_axis(axes: Axes, names: Sequence[str]) -> None:
    """Names the rows 0, 1, ..., the first on top."""
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
