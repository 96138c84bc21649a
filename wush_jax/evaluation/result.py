"""What `wush_jax.evaluate` found: perplexity, KL and top-1 agreement, each with its error."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, PRNGKeyArray
from rich.markup import escape
from rich.table import Table

from wush_jax.evaluation.bootstrap import resample
from wush_jax.evaluation.plot import plot_evaluations
from wush_jax.evaluation.rows import FLOAT, METRICS, Evaluation, Sums, difference, evaluation
from wush_jax.reporting.files import plain_json, write_json
from wush_jax.reporting.tables import as_text, plus_minus

# field, heading, 1 where less is better and -1 where more is, what it is shown in
_COLUMNS = (
    ("perplexity", "perplexity", 1, 1, ""),
    ("delta_loss", "Δ loss", 1, 1, ""),
    ("kl", "KL to float", 1, 1, ""),
    ("top1", "top-1 agreement", -1, 100, " %"),
    ("recovery", "recovery", -1, 1, " %"),
)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluations(Mapping[str, Evaluation]):
    """All candidates by name, the float model's row ("float") first.

    Errors are standard errors by the bootstrap (Efron 1979) over whole sequences.

    Attributes:
      rows: name -> `Evaluation`.
      sums: name -> per-sequence `Sums`, of which all else is made.
      resampled: name -> totals of each bootstrap resample [R, 4], the columns of `Sums`; the same
        resamples for every name.
    """

    rows: Mapping[str, Evaluation]
    sums: Mapping[str, Sums]
    resampled: Mapping[str, Float[np.ndarray, "R 4"]]

    def __getitem__(self, name: str) -> Evaluation:
        return self.rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def difference(self, a: str, b: str, metric: str = "loss") -> tuple[float, float]:
        """How much higher ``metric`` is for ``a`` than for ``b``, and the error of that difference.

        Both saw the same sequences, so the bootstrap is paired: the error is that of the
        difference, often far below the two candidates' own.

        Args:
          a, b: names.
          metric: "loss", "perplexity", "kl" or "top1".

        Returns:
          a's minus b's, and its bootstrap standard error.

        Raises:
          ValueError: an unknown name or metric.
        """
        for name in (a, b):
            if name not in self.rows:
                raise ValueError(f"no candidate {name!r}; there are {', '.join(self.rows)}")
        if metric not in METRICS:
            raise ValueError(f"unknown metric {metric!r}; there are {', '.join(METRICS)}")
        return difference(self.sums, self.resampled, a, b, metric)

    def table(self) -> Table:
        """A rich table, one row a candidate; the best quantized one of each column in bold."""
        first = next(iter(self.rows.values()))
        table = Table(title=f"{first.tokens:,} tokens in {first.sequences:,} sequences")
        table.add_column("", no_wrap=True)
        others = [row for name, row in self.rows.items() if name != FLOAT]
        best = {}
        for field, heading, sign, *_ in _COLUMNS:
            table.add_column(heading, justify="right")
            best[field] = min((sign * getattr(row, field) for row in others), default=math.nan)
        for name, row in self.rows.items():
            cells = []
            for field, _, sign, scale, unit in _COLUMNS:
                value, error = getattr(row, field), getattr(row, f"{field}_se")
                cell = plus_minus(scale * value, scale * error) + unit
                bold = name != FLOAT and len(others) > 1 and sign * value == best[field]
                cells.append(f"[bold]{cell}[/bold]" if bold else cell)
            table.add_row(escape(name), cells[0], *(["-"] * 4 if name == FLOAT else cells[1:]))
        count = len(next(iter(self.resampled.values())))
        table.caption = f"± standard error, {count} bootstrap resamples of whole sequences"
        return table

    def __str__(self) -> str:
        return as_text(self.table())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it; a figure that is not finite is None."""
        return plain_json({name: dataclasses.asdict(row) for name, row in self.rows.items()})

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; an existing file is replaced as a whole or not at all."""
        write_json(Path(path), self.as_dict())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG of loss added, KL and top-1 agreement, with errors.

        Raises:
          ValueError: there is no candidate beside the float model.
          ImportError: matplotlib is not installed.
        """
        plot_evaluations(self, Path(path))


def summarize(sums: Mapping[str, Sums], bootstrap: int, key: PRNGKeyArray) -> Evaluations:
    """Means over tokens and their errors, from per-sequence sums.

    Args:
      sums: name -> sums over the same sequences; "float" is one of the names.
      bootstrap: how many resamples.
      key: decides them.

    Raises:
      ValueError: no token was counted.
    """
    counted = sums[FLOAT].tokens > 0  # a sequence without tokens adds nothing to any sum
    if not counted.any():
        raise ValueError("the mask (or the length) of every sequence leaves no token to predict")
    sums = {
        name: Sums(*(getattr(s, field.name)[counted] for field in dataclasses.fields(Sums)))
        for name, s in sums.items()
    }
    drawn = resample(np.stack([s.stacked() for s in sums.values()], axis=1), bootstrap, key)
    if counted.sum() < 2:
        drawn = drawn[:0]  # one sequence resampled is itself: no error can be told
    resampled = {name: drawn[:, i] for i, name in enumerate(sums)}
    rows = {name: evaluation(sums, resampled, name) for name in sums}
    return Evaluations(rows, sums, resampled)
