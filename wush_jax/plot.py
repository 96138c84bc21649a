"""The per-layer plot. Matplotlib is imported here alone, and only when a plot is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from wush_jax.files import write_atomically

if TYPE_CHECKING:
    from wush_jax.report import Report

# Okabe-Ito colours: told apart by colour-blind readers too.
_SERIES = (
    ("error_identity", "identity", "#999999", "o"),
    ("error_hadamard", "hadamard", "#E69F00", "s"),
    ("error", None, "#0072B2", "D"),
)


def plot_layers(report: Report, path: Path) -> None:
    """Writes a PNG: a row a layer, relative output error on a log axis, three transforms."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'wush-jax[examples]'") from error
    names = [layer.path for layer in report.layers]
    chosen = "/".join(sorted({layer.transform for layer in report.layers}))
    figure = Figure(figsize=(8, 1.4 + 0.19 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    positions = range(len(names))
    for field, label, colour, marker in _SERIES:
        values = [getattr(layer, field) for layer in report.layers]
        mean = report.mean_error(field)
        text = f"{label or chosen} (geometric mean {mean:.4f})"
        axes.plot(values, positions, marker, color=colour, label=text, markersize=4)
    axes.hlines(
        list(positions),
        [layer.error for layer in report.layers],
        [layer.error_hadamard for layer in report.layers],
        color="#0072B2",
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
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=150, format="png"))
