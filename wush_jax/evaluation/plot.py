"""The plot of an evaluation: what each candidate loses, with standard errors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wush_jax.evaluation.rows import FLOAT, Evaluation
from wush_jax.reporting import figures
from wush_jax.reporting.tables import plus_minus

_PANELS = (
    ("delta_loss", 1, "loss added to the float model's\n(nats a token)"),
    ("kl", 1, "KL to the float model\n(nats a token)"),
    ("top1", 100, "top-1 agreement with it\n(% of tokens)"),
)


def plot_evaluations(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Writes a PNG: a row a candidate; loss added, KL and top-1 agreement, with standard errors.

    Loss added, not perplexity, has a panel: its error is paired, so that bars that miss zero mean
    what they seem to. Perplexities stand beside the names.

    Args:
      evaluations: by name, the float model's row among them.

    Raises:
      ValueError: there is no candidate.
    """
    rows = {name: row for name, row in evaluations.items() if name != FLOAT}
    if not rows:
        raise ValueError("nothing to plot: there is no candidate beside the float model")
    figure = figures.new_figure(10, 1.5 + 0.42 * len(rows))
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (field, scale, label) in zip(panels, _PANELS, strict=True):
        values = [scale * getattr(row, field) for row in rows.values()]
        errors = [scale * getattr(row, f"{field}_se") for row in rows.values()]
        figures.dots(axes, values, range(len(rows)), errors, figures.BLUE, "o")
        figures.axis(axes, values, errors)
        if field == "delta_loss":
            figures.reference_line(axes, 0)
        axes.set_xlabel(label, fontsize=9)
    names = [f"{name}\nperplexity {row.perplexity:.4g}" for name, row in rows.items()]
    figures.rows_axis(panels[0], names)
    reference = evaluations[FLOAT]
    figure.suptitle(
        f"{reference.tokens:,} tokens in {reference.sequences:,} sequences; float model: "
        f"perplexity {plus_minus(reference.perplexity, reference.perplexity_se)}; "
        "bars: standard errors",
        fontsize=9,
    )
    figures.save(figure, path)
