"""Parts of plots: rows of dots with bars. Matplotlib is imported when a figure is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from wush_jax.reporting.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe-Ito colours: told apart by colour-blind readers too.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#E69F00", "#009E73", "#CC79A7"
SKY, RED, GREY = "#56B4E9", "#D55E00", "#999999"


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


def reference_line(axes: Axes, value: float) -> None:
    """A dashed line upwards, which values are compared with."""
    axes.axvline(value, color=GREY, linestyle="--", linewidth=1)


def rows_axis(axes: Axes, names: Sequence[str], size: float = 8) -> None:
    """Names the rows 0, 1, ..., the first on top, in letters of ``size`` points."""
    axes.set_yticks(range(len(names)), names, fontsize=size)
    axes.set_ylim(len(names) - 0.5, -0.5)
