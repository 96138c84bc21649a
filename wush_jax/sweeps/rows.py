"""A sweep's rows: the figures of one configuration, and their means over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from wush_jax.config import Config
from wush_jax.quantization.report.rows import both_formats

COSTS = ("bits", "bytes", "seconds")  # shown last, and not plotted


@dataclasses.dataclass(frozen=True)
class SweepRow:
    """One configuration with one seed, or its mean over seeds.

    Attributes:
      name: of the configuration, unique among them.
      label: the transform as the grid named it, or ``name`` of a configuration given by name.
      format, act_format: number formats of weights and activations (None: kept in float).
      transform, block: which transform, and D.
      solver, scale_search: as in `wush_jax.Config`.
      seed: which one, from 0; None for the mean over seeds.
      metrics: figure by name; empty if failed.
      spread: standard deviation over seeds of a mean over several, else the bootstrap standard
        error of the figures that have one.
      failed: the message, or None.
    """

    name: str
    label: str
    format: str
    act_format: str | None
    transform: str
    block: int
    solver: str
    scale_search: bool
    seed: int | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    spread: Mapping[str, float] = dataclasses.field(default_factory=dict)
    failed: str | None = None

    @property
    def formats(self) -> str:
        """Both number formats as one text."""
        return both_formats(self.format, self.act_format)

    @property
    def solving(self) -> str:
        """Solver and scale search as one text."""
        return self.solver + ("+search" if self.scale_search else "")


def row(name: str, label: str, config: Config, seed: int) -> SweepRow:
    """The row of a configuration, before it has figures."""
    layer = config.layer()
    return SweepRow(
        name=name,
        label=label,
        format=str(layer.format),
        act_format=None if layer.act_format is None else str(layer.act_format),
        transform=layer.transform,
        block=layer.block,
        solver=layer.solver,
        scale_search=layer.scale_search,
        seed=seed,
    )


def means(rows: Sequence[SweepRow]) -> tuple[SweepRow, ...]:
    """One row for each configuration: its mean over the seeds that did not fail."""
    by_name: dict[str, list[SweepRow]] = {}
    for each in rows:
        by_name.setdefault(each.name, []).append(each)
    return tuple(map(_mean, by_name.values()))


def _mean(rows: Sequence[SweepRow]) -> SweepRow:
    """Of one configuration's seeds; of a single seed its own figures and errors."""
    done = [each for each in rows if each.failed is None]
    if len(rows) == 1 or not done:
        return dataclasses.replace(rows[0], seed=None)
    metrics, spread = {}, {}
    for name in done[0].metrics:
        values = [each.metrics[name] for each in done if name in each.metrics]
        metrics[name] = float(np.mean(values))
        if len(values) > 1:
            spread[name] = float(np.std(values, ddof=1))
    return dataclasses.replace(done[0], seed=None, metrics=metrics, spread=spread)


def metrics(rows: Sequence[SweepRow]) -> tuple[str, ...]:
    """Names of all figures, costs last."""
    found = dict.fromkeys(name for each in rows for name in each.metrics)
    return (*(n for n in found if n not in COSTS), *(n for n in COSTS if n in found))


def errors(rows: Sequence[SweepRow]) -> str:
    """What the ``spread`` of `means` is, in words; empty if there is none."""
    if len({each.seed for each in rows}) > 1:
        return "standard deviation over seeds"
    return "bootstrap standard error" if any(each.spread for each in rows) else ""
