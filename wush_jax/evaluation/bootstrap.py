"""The bootstrap over sequences: how far a figure would move had other sequences been drawn.

Tokens of one sequence are not independent, sequences are; so whole sequences are drawn, with
replacement. What is resampled are sums, so a ratio of sums (a mean over tokens) is resampled as
the ratio that it is. All columns see the same draws: differences between them are paired.

References: Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7, 1979.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

_CHUNK = 4_000_000  # weights held at a time


def resample(
    sums: Float[np.ndarray, "S ..."], count: int, key: PRNGKeyArray
) -> Float[np.ndarray, "R ..."]:
    """Totals of ``count`` resamples of S sequences, in float64.

    Args:
      sums: per-sequence sums, float64 [S, ...].
      count: R, how many resamples; 0 gives an empty result.
      key: decides the draws; the same key and S give the same draws for any columns.

    Returns:
      float64 [R, ...]: each row the sum over S sequences drawn with replacement.
    """
    sequences = sums.shape[0]
    flat = sums.reshape(sequences, -1)
    step = max(1, _CHUNK // sequences)
    totals = np.empty((count, flat.shape[1]))
    for start in range(0, count, step):
        rows = min(step, count - start)
        shape = (rows, sequences)
        fold = jax.random.fold_in(key, start)
        drawn = jax.random.randint(fold, shape, 0, sequences, jnp.int32)
        cells = np.asarray(drawn, np.int64) + sequences * np.arange(rows)[:, None]
        times = np.bincount(cells.ravel(), minlength=rows * sequences).reshape(shape)
        totals[start : start + rows] = times @ flat
    return totals.reshape(count, *sums.shape[1:])


def standard_error(statistic: Float[np.ndarray, " R"]) -> float:
    """Standard deviation over resamples; NaN with fewer than two of them.

    Infinite values (a perplexity that overflowed) make it NaN too.
    """
    if len(statistic) < 2 or not np.isfinite(statistic).all():
        return float("nan")
    return float(np.std(statistic, ddof=1))
