"""What a sweep's rows are judged by: a function of one's own, or the prediction of tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

from wush_jax.evaluation.evaluate import forward, named, sequence_sums
from wush_jax.evaluation.result import summarize
from wush_jax.evaluation.rows import FLOAT, Evaluation, Sums
from wush_jax.evaluation.targets import Targets
from wush_jax.frontends import select
from wush_jax.statistics.moments import Mask
from wush_jax.sweeps.result import Sweep
from wush_jax.sweeps.rows import SweepRow

Figures = Callable[[Any], Mapping[str, float]]
MAXIMIZE = ("top1", "recovery", "cosine", "accuracy")
_EVALUATED = ("perplexity", "delta_loss", "kl", "top1", "recovery")


@dataclasses.dataclass(frozen=True)
class Score:
    """Figures by a function of one's own, for `wush_jax.sweep`.

        Score(lambda qparams: {"f1": f1_of(qparams)}, maximize=("f1",), reference={"f1": 0.91})

    Attributes:
      function: from quantized params, of the form of the sweep's ``params``, to figures by name.
      maximize: the figures of which more is better; of all others less is.
      reference: the float model's figures, for the table and the plot.
    """

    function: Figures
    maximize: Collection[str] = MAXIMIZE
    reference: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class TokenScore:
    """Perplexity, Δ loss, KL, top-1 agreement and recovery, for `wush_jax.sweep`.

    What `wush_jax.evaluate` finds; the sweep then needs the model. The float model's figures are
    the reference.

    Attributes:
      batches: held-out batches of what the model takes; any iterable, which is read here and now,
        and kept in memory.
      targets: from a batch to the tokens to predict, integers [B, T]. Default: the next token.
      mask: from a batch to [B, T], non-zero where a token counts. Default: the sweep's own mask.
      bootstrap: resamples of whole sequences for the standard errors.
    """

    batches: Iterable[Any]
    targets: Targets | None = None
    mask: Callable[[Any], Mask] | None = None
    bootstrap: int = 1000

    def __post_init__(self):
        object.__setattr__(self, "batches", tuple(self.batches))


@runtime_checkable
class Judge(Protocol):
    """Figures of every row, and of the float model."""

    def judge(self, name: str, qparams: Any) -> dict[str, float]:
        """Figures of one row that are known at once.

        Args:
          name: of the row, unique among configurations and seeds.
          qparams: quantized params.

        Raises:
          ValueError, NotImplementedError: they cannot be judged.
        """
        ...

    def complete(self, rows: Mapping[str, SweepRow]) -> Sweep:
        """The sweep: rows by the names that they were judged under, with all figures."""
        ...


def judge_of(
    score: Score | TokenScore | Figures | None,
    model: Any,
    params: Any,
    mask: Callable[[Any], Mask] | None,
) -> Judge:
    """The judge that applies ``score``.

    Raises:
      ValueError: the score needs a model, or the float model cannot be evaluated.
    """
    if isinstance(score, TokenScore):
        if model is None:
            raise ValueError("a TokenScore needs the model: pass model=")
        return _Tokens(score, model, params, score.mask or mask)
    if isinstance(score, Score):
        return _Own(score)
    return _Own(Score(score or (lambda qparams: {})))


class _Own:
    """By a function of the user's."""

    def __init__(self, score: Score):
        self._score = score

    def judge(self, name: str, qparams: Any) -> dict[str, float]:
        del name
        return {str(k): float(v) for k, v in self._score.function(qparams).items()}

    def complete(self, rows: Mapping[str, SweepRow]) -> Sweep:
        maximize, reference = frozenset(self._score.maximize), dict(self._score.reference)
        return Sweep(tuple(rows.values()), maximize, reference)


class _Tokens:
    """By `evaluate`: sums now; figures, which share their bootstrap resamples, at the end."""

    def __init__(
        self,
        score: TokenScore,
        model: Any,
        params: Any,
        mask: Callable[[Any], Mask] | None,
    ):
        self._score, self._mask = score, mask
        self._front, self._params = select.front_end(model), params
        self._run, self._variables = forward(self._front), self._front.variables(params)
        # of the float model alone: bad batches show before hours of quantizing
        self._sums = self._measured({})

    def _measured(self, candidates: Mapping[str, Any]) -> dict[str, Sums]:
        others = named(self._front, self._params, self._variables, candidates)
        data = (self._score.batches, self._score.targets, self._mask)
        return sequence_sums(self._front, self._run, self._variables, others, *data, False)

    def judge(self, name: str, qparams: Any) -> dict[str, float]:
        self._sums |= self._measured({name: qparams})
        return {}

    def complete(self, rows: Mapping[str, SweepRow]) -> Sweep:
        found = summarize(self._sums, self._score.bootstrap, jax.random.key(0))
        done = [
            row if row.failed is not None else _with_figures(row, found[name])
            for name, row in rows.items()
        ]
        reference = _figures(found[FLOAT])
        return Sweep(tuple(done), frozenset({"top1", "recovery"}), reference, found)


def _with_figures(row: SweepRow, found: Evaluation) -> SweepRow:
    spread = _figures(found, "_se")
    return dataclasses.replace(row, metrics={**row.metrics, **_figures(found)}, spread=spread)


def _figures(found: Evaluation, suffix: str = "") -> dict[str, float]:
    return {field: getattr(found, field + suffix) for field in _EVALUATED}
