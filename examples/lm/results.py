"""What quantization did to a language model: figures of each configuration over all seeds."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from examples.lm.grid import Row, name_of
from wush_jax.reporting import figures
from wush_jax.reporting.tables import plus_minus

_MARKS = (
    (figures.BLUE, "o"),
    (figures.ORANGE, "s"),
    (figures.GREEN, "D"),
    (figures.PURPLE, "^"),
    (figures.RED, "v"),
)


@dataclasses.dataclass(frozen=True)
class Result:
    """One configuration, calibrated with several seeds; every list has a figure a seed.

    Attributes:
      format, transform, solver: the row.
      perplexity: a byte.
      delta_loss: mean negative log-likelihood minus the float model's, nats a byte.
      delta_loss_se: its standard error: the text's share of the uncertainty, by a paired
        bootstrap over sequences; the spread over seeds is the calibration's share.
      kl: KL(float || quantized), nats a byte.
      top1: share of bytes where both models have the same first choice.
      seconds: to quantize, compilation included where it was needed.
    """

    format: str
    transform: str
    solver: str
    perplexity: list[float]
    delta_loss: list[float]
    delta_loss_se: list[float]
    kl: list[float]
    top1: list[float]
    seconds: list[float]

    @property
    def name(self) -> str:
        return name_of(self.format, self.transform, self.solver)


def collect(row: Row, evaluations: Iterable[Any], seconds: Sequence[float]) -> Result:
    """A row's `Result` from its `wush_jax.Evaluation` of each seed."""
    found = list(evaluations)
    return Result(
        row.format,
        row.transform,
        row.solver,
        perplexity=[e.perplexity for e in found],
        delta_loss=[e.delta_loss for e in found],
        delta_loss_se=[e.delta_loss_se for e in found],
        kl=[e.kl for e in found],
        top1=[e.top1 for e in found],
        seconds=list(seconds),
    )


def mean_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds (of the sample; None for one seed)."""
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return statistics.fmean(values), deviation


def reference_dict(evaluation: Any) -> dict[str, Any]:
    """What tables need of the float model's `wush_jax.Evaluation`."""
    names = ("perplexity", "loss", "tokens", "sequences")
    return {name: getattr(evaluation, name) for name in names}


def table(title: str, dtype: str, reference: Mapping[str, Any], results: Sequence[Result]) -> Table:
    """A rich table, the float model first; each format's lowest perplexity in bold.

    Args:
      dtype: of the float model's products.
      reference: from `reference_dict`.
    """
    seeds = len(results[0].perplexity)
    made = Table(title=title)
    for name in ("format", "transform", "solver"):
        made.add_column(name, no_wrap=True)
    for name in ("perplexity", "Δ loss, nats", "its error", "KL to float", "top-1 %", "seconds"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_row(dtype, "", "", f"{reference['perplexity']:.4f}", *[""] * 5)
    best: dict[str, float] = {}
    for r in results:
        best[r.format] = min(best.get(r.format, float("inf")), statistics.fmean(r.perplexity))
    last = None
    for r in results:
        if r.format != last:
            made.add_section()
            last = r.format
        chosen = statistics.fmean(r.perplexity) == best[r.format]
        made.add_row(
            r.format,
            r.transform,
            r.solver,
            plus_minus(*mean_deviation(r.perplexity)),
            plus_minus(*mean_deviation(r.delta_loss)),
            f"{statistics.fmean(r.delta_loss_se):.5f}",
            plus_minus(*mean_deviation(r.kl)),
            plus_minus(*mean_deviation([100 * share for share in r.top1])),
            f"{min(r.seconds):.1f}",
            style="bold" if chosen else None,
        )
    made.caption = (
        f"{reference['tokens']:,} bytes held out, in {reference['sequences']:,} sequences. "
        f"± standard deviation over {seeds} calibration seed{'s' * (seeds > 1)}; "
        "Δ's error: paired bootstrap over sequences; seconds: of the fastest seed"
    )
    return made


def as_dict(result: Result) -> dict[str, Any]:
    """Plain data: the figures by seed, and their means and standard deviations over seeds."""
    names = ("perplexity", "delta_loss", "kl", "top1")
    means = {name: mean_deviation(getattr(result, name)) for name in names}
    return dataclasses.asdict(result) | {"mean": means}


def from_dict(data: Mapping[str, Any]) -> Result:
    """The inverse of `as_dict`."""
    return Result(**{name: value for name, value in data.items() if name != "mean"})


def plot(title: str, results: Sequence[Result], path: Path) -> None:
    """Writes a PNG: loss added by each configuration, a panel a format (needs matplotlib)."""
    formats = list(dict.fromkeys(r.format for r in results))
    transforms = list(dict.fromkeys(r.transform for r in results))
    solvers = list(dict.fromkeys(r.solver for r in results))
    width = max(7.0, 1.2 + len(formats) * (1.2 + 0.35 * len(transforms)))  # the legend's at least
    figure = figures.new_figure(width, 4.2)
    panels = figure.subplots(1, len(formats), sharey=True, squeeze=False)[0]
    for panel, format in zip(panels, formats, strict=True):
        for i, solver in enumerate(solvers):
            chosen = [r for r in results if (r.format, r.solver) == (format, solver)]
            means = [statistics.fmean(r.delta_loss) for r in chosen]
            spread = [mean_deviation(r.delta_loss)[1] or 0.0 for r in chosen]
            panel.errorbar(
                [
                    transforms.index(r.transform) + 0.12 * (i - (len(solvers) - 1) / 2)
                    for r in chosen
                ],
                means,
                spread,
                fmt=_MARKS[i % len(_MARKS)][1],
                color=_MARKS[i % len(_MARKS)][0],
                markersize=5,
                capsize=2,
                label=solver,
            )
        panel.set_yscale("log")
        panel.set_xticks(range(len(transforms)), transforms, rotation=35, ha="right")
        panel.set_title(format)
        panel.grid(axis="y", which="both", alpha=0.25)
    panels[0].set_ylabel("loss above the float model's, nats a byte")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), title=title)
    figures.save(figure, path)
