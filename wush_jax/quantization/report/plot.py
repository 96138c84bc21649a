"""The plot of a report: every layer's error beside those of identity and Hadamard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from wush_jax.quantization.report.rows import LayerReport, errors, mean_error
from wush_jax.reporting import figures

_SERIES = (
    ("error_identity", "identity", figures.GREY, "o"),
    ("error_hadamard", "hadamard", figures.ORANGE, "s"),
    ("error", None, figures.BLUE, "D"),
)


def plot_layers(layers: Sequence[LayerReport], path: Path) -> None:
    """Writes a PNG: a row a layer, relative output error on a log axis, up to three transforms."""
    chosen = "/".join(sorted({layer.transform for layer in layers}))
    figure = figures.new_figure(8, 1.4 + 0.19 * len(layers))
    axes = figure.add_subplot()
    positions = range(len(layers))
    for field, label, colour, marker in _SERIES:
        values = errors(layers, field)
        if values is not None:
            text = f"{label or chosen} (geometric mean {mean_error(layers, field):.4f})"
            axes.plot(values, positions, marker, color=colour, label=text, markersize=4)
    hadamard = errors(layers, "error_hadamard")
    if hadamard is not None:
        own = [layer.error for layer in layers]
        axes.hlines(positions, own, hadamard, color=figures.BLUE, linewidth=0.8, alpha=0.5)
    figures.rows_axis(axes, [layer.path for layer in layers], size=7)
    axes.set_xscale("log")
    axes.set_xlabel("relative output error, ‖y - xW‖² / ‖xW‖²")
    axes.grid(axis="x", which="both", alpha=0.25)
    formats = sorted({layer.format for layer in layers})
    figure.legend(loc="outside upper center", fontsize=8, title=", ".join(formats))
    figures.save(figure, path)
