"""How far quantized params are from the float model, over a stream of tokens.

One batch at a time, the float model's logits are computed once and every candidate's are compared
with them on the device; what comes back are sums per sequence. Perplexity, KL and top-1 agreement,
and the errors of all three and of their differences, follow from those sums alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from wush_jax.evaluation import targets as targets_lib
from wush_jax.evaluation.result import Evaluations, summarize
from wush_jax.evaluation.rows import FLOAT, Sums
from wush_jax.evaluation.targets import Targets
from wush_jax.frontends import select
from wush_jax.frontends.protocol import FrontEnd, Variables
from wush_jax.reporting.progress import track
from wush_jax.statistics.moments import Mask

Forward = Callable[[Variables, Any], Array]


def evaluate(
    model: Any,
    params: Any,
    candidates: Any,
    batches: Iterable[Any],
    *,
    targets: Targets | None = None,
    mask: Callable[[Any], Mask] | None = None,
    bootstrap: int = 1000,
    key: PRNGKeyArray | None = None,
    progress: bool | None = None,
) -> Evaluations:
    """Perplexity, KL and top-1 agreement of quantized params against the float ones.

    Args:
      model: as for `wush_jax.quantize`; it returns logits [B, T, V], or a tuple with them first.
      params: the float params, or the whole variables dict.
      candidates: name -> params, quantized or float, of the form of ``params`` (a bare tree takes
        the other collections from ``params``); or one such tree, which is named "quantized".
      batches: any iterable, consumed once; each batch is what the model takes: a tuple of
        positional arguments, a mapping of keyword arguments, or the one argument.
      targets: from a batch to the tokens to predict, integers [B, T]. Default: the next token, from
        the batch's first integer array [B, T]; its last position then predicts nothing.
      mask: from a batch to [B, T], non-zero where a token counts. With default targets a position
        counts where both its token and the next one do, so the mask of `quantize` serves.
      bootstrap: resamples of whole sequences for the standard errors (Efron 1979).
      key: decides the resamples; default ``jax.random.key(0)``.
      progress: a progress bar on stderr; None shows it on a terminal only.

    Returns:
      `Evaluations`: a mapping from name to `Evaluation`, the float model's own row named "float";
      print it, or use its ``table``, ``to_json``, ``plot`` and ``difference``. Softmax and sums
      are float32 on the device, float64 from one sequence to all.

    Raises:
      ValueError: no batch, no token to predict, a model's output or targets of another shape,
        targets outside the vocabulary, or NaN or Inf in a candidate's logits.
    """
    front = select.front_end(model)
    variables = front.variables(params)
    others = named(front, params, variables, candidates)
    sums = sequence_sums(front, forward(front), variables, others, batches, targets, mask, progress)
    return summarize(sums, bootstrap, jax.random.key(0) if key is None else key)


def forward(front: FrontEnd) -> Forward:
    """A compiled function (variables, batch) -> logits; one compilation a structure and shape."""

    @jax.jit
    def logits(variables: Variables, batch: Any) -> Array:
        out: Any = front.run(variables, batch)
        out = out[0] if isinstance(out, tuple) and out else out
        if not isinstance(out, jax.Array) or out.ndim != 3:
            raise ValueError(
                "evaluation needs a model that returns logits [B, T, V], or a tuple with them "
                f"first; {front.name} returned {targets_lib.described(out)}"
            )
        return out

    return logits


def named(
    front: FrontEnd, params: Any, variables: Variables, candidates: Mapping[str, Any]
) -> dict[str, Variables]:
    """Name -> variables, from what the user gave as candidates.

    Raises:
      ValueError: the name "float", or a candidate that is not of the float params' form.
    """
    top = front.holds(params)
    if front.holds(candidates) == top:
        candidates = {"quantized": candidates}
    if FLOAT in candidates:
        raise ValueError(f"a candidate is named {FLOAT!r}, which is the float model's own row")
    found = {}
    for name, tree in candidates.items():
        if front.holds(tree) != top:
            holds = sorted(front.holds(tree)) or type(tree).__name__
            raise ValueError(
                f"candidate {name!r} holds {holds}; params of this model hold {sorted(top)}"
            )
        found[str(name)] = front.variables(tree, rest=variables)
    return found


def sequence_sums(
    front: FrontEnd,
    run: Forward,
    variables: Variables,
    others: Mapping[str, Variables],
    batches: Iterable[Any],
    targets: Targets | None,
    mask: Callable[[Any], Mask] | None,
    progress: bool | None,
) -> dict[str, Sums]:
    """Per-sequence sums of the float model ("float") and of each candidate.

    Args:
      run: from `forward`.
      variables, others: of the float model, and by name of the candidates.
      batches, targets, mask, progress: as for `evaluate`.

    Raises: as `evaluate`.
    """
    found: dict[str, list[_BatchSums]] = {FLOAT: [], **{name: [] for name in others}}
    for batch in track(batches, "evaluating", progress):
        arrays = front.batch(batch)
        reference = run(variables, arrays)
        wanted, counts = targets_lib.wanted(batch, reference.shape, targets, mask)
        for name in found:
            logits = reference if name == FLOAT else run(others[name], arrays)
            # fetched at once: no more than one batch's logits wait on the device
            sums = jax.device_get(_compare(reference, logits, wanted, counts))
            if sums.bad.any():
                raise ValueError(
                    f"{name}: NaN or Inf in the logits of {int(sums.bad.sum())} tokens of batch "
                    f"{len(found[name])}; mask them if they are padding"
                )
            found[name].append(sums)
    if not found[FLOAT]:
        raise ValueError("batches is empty: evaluation needs at least one batch")
    return {name: _joined(parts) for name, parts in found.items()}


class _BatchSums(NamedTuple):
    """Float32 [B] each, of one batch's sequences; ``bad`` counts tokens with NaN or Inf."""

    tokens: Float[Array, " B"]
    nll: Float[Array, " B"]
    kl: Float[Array, " B"]
    top1: Float[Array, " B"]
    bad: Int[Array, " B"]


@jax.jit
def _compare(
    reference: Float[Array, "B T V"],
    logits: Float[Array, "B T V"],
    targets: Int[Array, "B T"],
    counts: Bool[Array, "B T"],
) -> _BatchSums:
    logp, logq = (jax.nn.log_softmax(x.astype(jnp.float32)) for x in (reference, logits))
    nll = -jnp.take_along_axis(logq, targets[..., None], axis=-1)[..., 0]
    p, q, d = jnp.exp(logp), jnp.exp(logq), logp - logq
    # Σ p d, plus Σ (q - p) = 0, which makes each term >= 0 and of second order in d: without it
    # terms of first order cancel, and a small KL drowns in their rounding.
    near = jnp.clip(d, -1, 1)
    kl = jnp.sum(jnp.where(d == near, p * (jnp.expm1(-near) + near), p * d + q - p), axis=-1)
    top1 = jnp.argmax(reference, axis=-1) == jnp.argmax(logits, axis=-1)
    bad = (~jnp.isfinite(logits).all(axis=-1)).astype(jnp.int32)

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(counts, values, 0), axis=-1)

    ones = jnp.ones(counts.shape, jnp.float32)
    return _BatchSums(
        total(ones), total(nll), total(kl), total(top1.astype(jnp.float32)), total(bad)
    )


def _joined(parts: list[_BatchSums]) -> Sums:
    names = ("tokens", "nll", "kl", "top1")
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
    return Sums(*(np.asarray(column, np.float64) for column in columns))
