"""Whether the methods come out in the order that is expected of them, with the errors of that.

    float model < best of ours < the paper's best < Hadamard, GPTQ < Hadamard, rounding to nearest

by loss, which is what a user feels, and by KL(float || quantized), which says how far a model is
from the one it should be: a loss that is lower than a model deserves (one that overfits gains by
any shrinking of its logits) does not fool it. Each is compared with its neighbour, over the same
sequences and with the same calibration text, so that what both have in common is not an error of
their difference.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from examples.lm.grid import OUR_SOLVERS, name_of
from examples.lm.results import Result

FLOAT = "float"
CLEAR = 2.0  # a difference of more than so many errors is called one
_BEST = "best of ours"

METRICS = {"loss": "delta_loss", "kl": "kl"}  # and the field of a `Result` that has it

# (a row's name, another's, seed, metric) -> the first's minus the second's, its standard error
Difference = Callable[[str, str, int, str], tuple[float, float]]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two neighbours in the order, of one format; lists have a figure a calibration seed.

    Attributes:
      metric: one of `METRICS`.
      lower, higher: what they are; ``lower`` is expected to have the lower loss or KL.
      differences: loss or KL of ``higher`` minus that of ``lower``, nats a byte.
      text_errors: standard errors of these for other text to judge on, by a paired bootstrap over
        sequences.
    """

    format: str
    metric: str
    lower: str
    higher: str
    differences: list[float]
    text_errors: list[float]

    @property
    def difference(self) -> float:
        return statistics.fmean(self.differences)

    @property
    def error(self) -> float:
        """Standard error of `difference`, for other text to judge on and to calibrate with.

        Seeds are judged on the same text, so averaging them does not lessen its share; the
        calibration's share, their spread / sqrt(seeds), cannot be told from a single seed.
        """
        seeds = len(self.differences)
        spread = statistics.stdev(self.differences) if seeds > 1 else 0.0
        return math.hypot(statistics.fmean(self.text_errors), spread / math.sqrt(seeds))

    @property
    def verdict(self) -> str:
        """ "holds", "reversed", or "not told apart" within `CLEAR` errors."""
        if not abs(self.difference) > CLEAR * self.error:
            return "not told apart"
        return "holds" if self.difference > 0 else "reversed"

    def __str__(self) -> str:
        size = self.difference / self.error if self.error else math.inf
        return (
            f"{self.lower} < {self.higher}: {self.difference:+.5f} ± {self.error:.5f} nats, "
            f"{size:.1f} errors: {self.verdict}"
        )

    def as_dict(self) -> dict[str, Any]:
        figures = {"difference": self.difference, "error": self.error, "verdict": self.verdict}
        return dataclasses.asdict(self) | figures


def from_dict(data: Mapping[str, Any]) -> Comparison:
    """The inverse of `Comparison.as_dict`."""
    names = [field.name for field in dataclasses.fields(Comparison)]
    return Comparison(**{name: data[name] for name in names})


def compare(results: Sequence[Result], difference: Difference) -> list[Comparison]:
    """The comparisons of every format that has at least two of the five in ``results``.

    The best of ours is the one of these rows with the lowest mean on this very text: where several
    are close, its lead over the paper's best is a little flattered.
    """
    found = []
    for format, metric in itertools.product(dict.fromkeys(r.format for r in results), METRICS):
        chain = _chain([r for r in results if r.format == format], metric)
        for (lower, low), (higher, high) in itertools.pairwise(chain):
            seeds = range(len(results[0].delta_loss))
            both = [difference(high, low, seed, metric) for seed in seeds]
            values, errors = ([float(pair[i]) for pair in both] for i in (0, 1))
            found.append(Comparison(format, metric, lower, higher, values, errors))
    return found


def _chain(rows: Sequence[Result], metric: str) -> list[tuple[str, str]]:
    """(what it is, row's name), of those there are, the lowest expected first."""
    names = {r.name for r in rows}
    chain = [("float model", FLOAT)] if metric == "loss" else []  # the KL to itself is 0
    ours = [r for r in rows if r.solver in OUR_SOLVERS]
    if ours:
        best = min(ours, key=lambda r: statistics.fmean(getattr(r, METRICS[metric])))
        chain.append((f"{_BEST} ({best.transform}, {best.solver})", best.name))
    for what, transform, solver in (
        ("the paper's best (wush, gptq)", "wush", "gptq"),
        ("Hadamard GPTQ", "hadamard", "gptq"),
        ("Hadamard RTN", "hadamard", "rtn"),
    ):
        name = name_of(rows[0].format, transform, solver)
        if name in names:
            chain.append((what, name))
    return chain


def statement(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as text, a line each, and what their errors are."""
    if not comparisons:
        return ""
    lines = []
    for format, metric in dict.fromkeys((c.format, c.metric) for c in comparisons):
        chosen = [c for c in comparisons if (c.format, c.metric) == (format, metric)]
        clear = sum(c.verdict == "holds" for c in chosen)
        lines.append(f"{format}, {metric}: {clear} of {len(chosen)} steps of the order hold")
        lines += [f"  {c}" for c in chosen]
    seeds = len(comparisons[0].differences)
    calibration = (
        f"the spread over {seeds} calibration seeds"
        if seeds > 1
        else "nothing for calibration, of which one seed tells nothing"
    )
    lines.append(
        f"Nats a byte. Errors: a paired bootstrap over sequences, and {calibration}; "
        f"a step holds, or is reversed, if it is more than {CLEAR:g} of them."
    )
    if any(c.lower.startswith(_BEST) for c in comparisons):
        lines.append(f"The {_BEST} is the lowest of these rows on this very text.")
    return "\n".join(lines)
