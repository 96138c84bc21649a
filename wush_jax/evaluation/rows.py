"""One candidate's figures, from per-sequence sums: perplexity, KL and top-1, with their errors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

from wush_jax.evaluation.bootstrap import standard_error

FLOAT = "float"  # the row of the model that every other is compared with
METRICS = ("loss", "perplexity", "kl", "top1")


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
        """All four as columns."""
        return np.stack([self.tokens, self.nll, self.kl, self.top1], axis=-1)

    def total(self) -> Float[np.ndarray, "1 4"]:
        """Their sums over the sequences."""
        return self.stacked().sum(0, keepdims=True)


def evaluation(
    sums: Mapping[str, Sums], resampled: Mapping[str, Float[np.ndarray, "R 4"]], name: str
) -> Evaluation:
    """The row of one candidate.

    Args:
      sums: name -> sums over the same sequences; "float" is one of the names.
      resampled: name -> totals of each bootstrap resample, the columns of `Sums`.
      name: whose row.
    """
    total = sums[name].total()
    fields: dict[str, float] = {}
    for metric in METRICS:
        fields[metric] = float(_metric(total, metric)[0])
        fields[f"{metric}_se"] = standard_error(_metric(resampled[name], metric))
    delta, delta_se = difference(sums, resampled, name, FLOAT, "loss")
    with np.errstate(over="ignore"):
        recovery = 100 * np.exp(-np.float64(delta))
        ratio = np.exp(_metric(resampled[FLOAT], "loss") - _metric(resampled[name], "loss"))
    return Evaluation(
        tokens=int(total[0, 0]),
        sequences=len(sums[name].tokens),
        delta_loss=delta,
        delta_loss_se=delta_se,
        recovery=float(recovery),
        recovery_se=100 * standard_error(ratio),
        **fields,
    )


def difference(
    sums: Mapping[str, Sums],
    resampled: Mapping[str, Float[np.ndarray, "R 4"]],
    a: str,
    b: str,
    metric: str,
) -> tuple[float, float]:
    """How much higher one of `METRICS` is for ``a`` than for ``b``, and that difference's error.

    Args:
      sums, resampled: as for `evaluation`: of the same sequences, and of the same resamples.
    """
    totals = {name: sums[name].total() for name in (a, b)}
    (value,) = _between(totals, a, b, metric)
    return float(value), standard_error(_between(resampled, a, b, metric))


def _between(
    of: Mapping[str, Float[np.ndarray, "R 4"]], a: str, b: str, metric: str
) -> Float[np.ndarray, " R"]:
    with np.errstate(invalid="ignore"):  # of two infinite perplexities
        return _metric(of[a], metric) - _metric(of[b], metric)


def _metric(totals: Float[np.ndarray, "R 4"], metric: str) -> Float[np.ndarray, " R"]:
    tokens, nll, kl, top1 = totals.T
    if metric == "perplexity":
        with np.errstate(over="ignore"):  # a loss above 709 has perplexity infinity
            return np.exp(nll / tokens)
    return {"loss": nll, "kl": kl, "top1": top1}[metric] / tokens
