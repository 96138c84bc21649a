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

from wush_jax.evaluation.bootstrap import resample, standard_error
from wush_jax.reporting import tables

FLOAT = "float"  # the row of the model that every other is compared with


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One candidate. Errors (``_se``) are bootstrap standard errors over whole sequences.

    They are NaN for a single sequence, or with ``bootstrap=0``.

    Attributes:
      tokens: how many predictions were counted.
      sequences: how many sequences hold at least one of them.
      loss: mean negative log-likelihood, nats a token.
      perplexity: exp(loss).
      delta_loss: loss minus the float model's; its error is paired, over the same sequences.
      kl: mean over tokens of KL(float || candidate), nats.
      top1: share of tokens where the most likely next token is the float model's, 0 to 1.
      recovery: percent, 100 x the float model's perplexity / perplexity; 100 is no loss at all.
    """

    tokens: int
    sequences: int
    loss: float
    loss_se: float
    perplexity: float
    perplexity_se: float
    delta_loss: float
    delta_loss_se: float
    kl: float
    kl_se: float
    top1: float
    top1_se: float
    recovery: float
    recovery_se: float


@dataclasses.dataclass(frozen=True, eq=False)
class Sums:
    """Sums over the counted tokens of each of S sequences, float64 [S].

    Attributes:
      tokens: how many.
      nll: negative log-likelihoods of the targets, nats.
      kl: KL(float || candidate), nats.
      top1: agreements with the float model's most likely token.
    """

    tokens: Float[np.ndarray, " S"]
    nll: Float[np.ndarray, " S"]
    kl: Float[np.ndarray, " S"]
    top1: Float[np.ndarray, " S"]

    def stacked(self) -> Float[np.ndarray, "S 4"]:
        return np.stack([self.tokens, self.nll, self.kl, self.top1], axis=-1)


@dataclasses.dataclass(frozen=True, eq=False)
class Evaluations(Mapping[str, Evaluation]):
    """All candidates by name, the float model's row ("float") first.

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
        return _difference(self.sums, self.resampled, a, b, metric)

    def table(self) -> Table:
        """A rich table, one row a candidate; the best quantized one of each column in bold."""
        first = next(iter(self.rows.values()))
        table = Table(title=f"{first.tokens:,} tokens in {first.sequences:,} sequences")
        table.add_column("", no_wrap=True)
        for heading in ("perplexity", "Δ loss", "KL to float", "top-1 agreement", "recovery"):
            table.add_column(heading, justify="right")
        columns = (("perplexity", 1), ("delta_loss", 1), ("kl", 1), ("top1", -1), ("recovery", -1))
        others = {name: row for name, row in self.rows.items() if name != FLOAT}
        best = {
            field: min((sign * getattr(row, field) for row in others.values()), default=math.nan)
            for field, sign in columns
        }
        for name, row in self.rows.items():
            cells = []
            for field, sign in columns:
                value, error = getattr(row, field), getattr(row, f"{field}_se")
                scale, unit = (100, " %") if field == "top1" else (1, "")
                unit = " %" if field == "recovery" else unit
                cell = tables.plus_minus(scale * value, scale * error) + unit
                bold = name != FLOAT and len(others) > 1 and sign * value == best[field]
                cells.append(f"[bold]{cell}[/bold]" if bold else cell)
            table.add_row(escape(name), cells[0], *(["-"] * 4 if name == FLOAT else cells[1:]))
        count = len(next(iter(self.resampled.values())))
        table.caption = f"± standard error, {count} bootstrap resamples of whole sequences"
        return table

    def __str__(self) -> str:
        return tables.as_text(self.table())

    def as_dict(self) -> dict[str, Any]:
        """Plain data, as `to_json` writes it; a figure that is not finite is None."""
        return tables.plain_json({name: dataclasses.asdict(row) for name, row in self.rows.items()})

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON; an existing file is replaced as a whole or not at all."""
        tables.write_json(Path(path), self.as_dict())

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Writes a PNG of perplexity, KL and top-1 agreement, with errors (needs matplotlib)."""
        from wush_jax.reporting.figures import plot_evaluations

        plot_evaluations(self, Path(path))


METRICS = ("loss", "perplexity", "kl", "top1")


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
    rows = {name: _evaluation(sums, resampled, name) for name in sums}
    return Evaluations(rows, sums, resampled)


def _evaluation(
    sums: Mapping[str, Sums], resampled: Mapping[str, np.ndarray], name: str
) -> Evaluation:
    totals = sums[name].stacked().sum(0)
    fields: dict[str, float] = {}
    for metric in METRICS:
        fields[metric] = float(_metric(totals, metric))
        fields[f"{metric}_se"] = standard_error(_metric(resampled[name], metric))
    delta, delta_se = _difference(sums, resampled, name, FLOAT, "loss")
    with np.errstate(over="ignore"):
        recovery = 100 * np.exp(-np.float64(delta))
        ratio = np.exp(_metric(resampled[FLOAT], "loss") - _metric(resampled[name], "loss"))
    return Evaluation(
        tokens=int(totals[0]),
        sequences=len(sums[name].tokens),
        delta_loss=delta,
        delta_loss_se=delta_se,
        recovery=float(recovery),
        recovery_se=100 * standard_error(ratio),
        **fields,
    )


def _metric(totals: Float[np.ndarray, "*r 4"], metric: str) -> Float[np.ndarray, "*r"]:
    tokens, nll, kl, top1 = np.moveaxis(totals, -1, 0)
    if metric == "perplexity":
        with np.errstate(over="ignore"):  # a loss above 709 has perplexity infinity
            return np.exp(nll / tokens)
    return {"loss": nll, "kl": kl, "top1": top1}[metric] / tokens


def _difference(
    sums: Mapping[str, Sums], resampled: Mapping[str, np.ndarray], a: str, b: str, metric: str
) -> tuple[float, float]:
    def between(of: Mapping[str, np.ndarray]) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # of two infinite perplexities
            return _metric(of[a], metric) - _metric(of[b], metric)

    totals = {name: sums[name].stacked().sum(0) for name in (a, b)}
    return float(between(totals)), standard_error(between(resampled))
