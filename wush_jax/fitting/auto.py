"""``transform="auto"``: for each input the transform that the quantizer itself likes best.

Every candidate is fitted and solved as it would be in earnest, but without some of the sample
tokens, which are taken out of the second moments too. On those the layer's output error is
measured, its activations quantized. No closed form can stand in for that: which transform wins
depends on the outliers of weights and activations, and on the format.

A mean over tokens would not do either. A few tokens with massive activations carry most of the
squared error of some layers, and the calibration text is not the text of tomorrow. So a candidate
is judged against Hadamard, which has no knowledge of the data that could be wrong, by the larger
of two ratios, of summed errors (where the massive tokens count) and of the tokens' mean relative
errors (where all count alike), and of each the `_QUANTILE` of its bootstrap distribution over
tokens: what wins by luck, or on a few tokens only, does not win.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from wush_jax.config import LayerConfig
from wush_jax.fitting import measure
from wush_jax.fitting.fit import fit
from wush_jax.fitting.solve import as_kernel, solve
from wush_jax.ops import online
from wush_jax.statistics import moments
from wush_jax.statistics.moments import Moments
from wush_jax.statistics.running import Statistics
from wush_jax.transforms import spec
from wush_jax.transforms.blocks import matmul

_QUANTILE = 0.9
_RESAMPLES = 200
_REFERENCE = "hadamard"
_LEAST_SHARE = 4  # tokens for each one held back; with fewer, moments keep them all

Slice = Callable[[tuple[int, ...]], Array]


def choose_transform(
    seen: Statistics, kernels: Sequence[Slice], config: LayerConfig, key: PRNGKeyArray
) -> tuple[LayerConfig, dict[str, float]]:
    """The configuration with the best of ``config.candidates`` in place of "auto", and all scores.

    Args:
      seen: statistics of the input, [*stack, *batch, ...].
      kernels: for each layer that reads it, index over [*stack, *batch] -> kernel [K, N].
      key: as for `fit`.

    Returns:
      The configuration, and candidate -> score: log of the error ratio to Hadamard, as above; the
      worst of the layers.
    """
    lead = seen.moments.count.shape
    first = kernels[0]((0,) * len(lead))
    options = _options(config, first.shape[0])
    errors: dict[str, list[np.ndarray]] = {name: [] for name in options}
    for i, index in enumerate(itertools.product(*map(range, lead))):
        here: Statistics = jax.tree.map(lambda leaf, at=index: leaf[at], seen)
        fitting, rows, valid = _hold_back(here)
        group = [kernel(index) for kernel in kernels]
        fold = jax.random.fold_in(key, i)
        queued = {
            name: _errors(fitting, rows, group, fold, option) for name, option in options.items()
        }
        found, kept = jax.device_get((queued, valid))  # the one wait for the device
        for name, pairs in found.items():
            errors[name] += [pair[:, kept].astype(np.float64) for pair in pairs]
    weights = np.random.default_rng(0).exponential(
        size=(_RESAMPLES, errors[_REFERENCE][0].shape[1])
    )
    scores = {
        name: max(map(lambda e, r: _score(e, r, weights), found, errors[_REFERENCE]))
        for name, found in errors.items()
    }
    best = min(scores, key=lambda name: scores[name])
    return options[best], scores


def _options(config: LayerConfig, features: int) -> dict[str, LayerConfig]:
    """Candidate -> configuration, Hadamard first, without those whose blocks K does not fill."""
    padded = config.padded(features, "kernel")
    options = {}
    for text in dict.fromkeys((_REFERENCE, *config.candidates)):
        name, block, strength = spec.parse(text)
        block = block or config.block
        if padded % block == 0:
            options[text] = dataclasses.replace(
                config, transform=name, block=block, strength=strength, candidates=()
            )
    return options


def _hold_back(seen: Statistics) -> tuple[Statistics, Float[Array, "S K"], Array]:
    """Statistics without every other sample token, and those tokens."""
    rows, valid = seen.rows[1::2], seen.valid[1::2]
    held = measure.tokens(rows, valid)
    count = valid.sum(dtype=jnp.uint32)
    block = seen.moments.block
    padded = jnp.pad(held, ((0, 0), (0, seen.moments.features - held.shape[1])))
    out = moments.of(padded, block)
    enough = seen.moments.count >= _LEAST_SHARE * count
    left = Moments(
        jnp.where(enough, seen.moments.total - out.total, seen.moments.total),
        jnp.where(enough, seen.moments.count - count, seen.moments.count),
    )
    return Statistics(left, seen.rows[::2], seen.priority[::2]), held, valid


def _errors(
    seen: Statistics,
    rows: Float[Array, "S K"],
    kernels: Sequence[Float[Array, "K N"]],
    key: PRNGKeyArray,
    config: LayerConfig,
) -> list[Float[Array, "2 S"]]:
    """For each kernel the held-back tokens' squared errors and signals, still on the device."""
    fitted = fit(seen.moments, seen.rows, seen.valid, kernels, key, config)
    moment = moments.second_moment(seen.moments)
    forward, found = fitted.transform.forward, []
    for kernel in kernels:
        solved = solve(kernel, forward, moment, seen.rows, seen.valid, config)
        quantized = as_kernel(solved.solution, solved.act_global_scale, kernel.shape, config)
        found.append(_compare(rows, kernel, quantized))
    return found


@jax.jit
def _compare(x: Array, w: Array, kernel) -> Array:
    exact = matmul(x, w.astype(jnp.float32))
    error = online.linear(x, kernel, implementation="xla") - exact
    return jnp.stack([jnp.sum(error**2, axis=-1), jnp.sum(exact**2, axis=-1)])


def _score(errors: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> float:
    """The larger upper quantile of the two log error ratios to the reference."""
    signal = np.maximum(errors[1], 1e-30 + 1e-3 * errors[1].mean())
    worst = -math.inf
    for scale in (np.ones_like(signal), signal):
        own, other = (weights @ (e[0] / scale) for e in (errors, reference))
        ratios = np.log(np.maximum(own, 1e-30)) - np.log(np.maximum(other, 1e-30))
        worst = max(worst, float(np.quantile(ratios, _QUANTILE)))
    return worst
