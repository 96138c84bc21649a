"""One group: the layers that share an input and a transform, from statistics to quantized kernels.

Slice by slice (of a stack, of experts) a transform is fitted, each layer is solved with it and
measured. All of it is queued on the device; what the host must know (ranges, errors) is fetched
once, for the whole group, at the end.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from wush_jax.config import LayerConfig
from wush_jax.fitting import measure
from wush_jax.fitting.auto import choose_transform
from wush_jax.fitting.fit import Fit, fit
from wush_jax.fitting.solve import Solved, solve
from wush_jax.formats import exactness
from wush_jax.formats.exactness import Held, Range
from wush_jax.layers.layer import Layer
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.quantization import assemble
from wush_jax.quantization.report.rows import LayerReport, transform_cost
from wush_jax.statistics.moments import second_moment
from wush_jax.statistics.running import Statistics
from wush_jax.transforms import hadamard


@dataclasses.dataclass(frozen=True)
class Group:
    """Layers that read one array and share one transform.

    Attributes:
      leader: name of the first.
      layers: name -> layer, the leader first.
      config: of all of them.
      weights: name -> float weight in its own axes.
      seen: statistics of the input, leaves [*stack, *batch, ...].
      key: for what is random.
    """

    leader: str
    layers: Mapping[str, Layer]
    config: LayerConfig
    weights: Mapping[str, Array | np.ndarray]
    seen: Statistics
    key: PRNGKeyArray

    @property
    def lead(self) -> tuple[int, ...]:
        """[*stack, *batch]."""
        return self.seen.moments.count.shape


class _Slice(NamedTuple):
    """One slice of the group on the device."""

    fitted: Fit
    solved: dict[str, Solved]
    compared: dict[str, tuple[Array, Array]]  # RTN errors with identity and Hadamard


def solve_group(
    group: Group, *, compare: bool
) -> tuple[dict[str, QuantizedKernel], list[LayerReport]]:
    """Quantizes a group.

    Args:
      compare: also measure what identity and Hadamard would have done, for a report.

    Returns:
      Name -> quantized kernel, and a `LayerReport` for each layer and slice.
    """
    matrices = {
        name: assemble.slices(group.weights[name], layer) for name, layer in group.layers.items()
    }
    config, scores = group.config, {}
    if config.transform == "auto":
        config, scores = choose_transform(group.seen, list(matrices.values()), config, group.key)
        group = dataclasses.replace(group, config=config)
    indices = list(itertools.product(*map(range, group.lead)))
    done = []
    for i, index in enumerate(indices):
        kernels = {name: matrix(index) for name, matrix in matrices.items()}
        here = jax.tree.map(lambda leaf, at=index: leaf[at], group.seen)
        done.append(_solve_slice(group, here, kernels, jax.random.fold_in(group.key, i), compare))
    facts, counts = jax.device_get(  # the one wait for the device
        ([_facts(each) for each in done], group.seen.moments.count)
    )
    held = _hold(facts, config)
    kernels = {
        name: assemble.assemble(
            assemble.gather([each.solved[name] for each in done], held.exponents, group.lead),
            held.exact_in[name],
            layer,
            config,
            group.leader if len(group.layers) > 1 else None,
            str(group.weights[name].dtype),
        )
        for name, layer in group.layers.items()
    }
    rows = [
        _row(group, name, index, int(tokens), fact, scores)
        for name in group.layers
        for index, tokens, fact in zip(indices, counts.reshape(-1), facts, strict=True)
    ]
    return kernels, rows


def _solve_slice(
    group: Group,
    seen: Statistics,
    kernels: Mapping[str, Float[Array, "K N"]],
    key: PRNGKeyArray,
    compare: bool,
) -> _Slice:
    """Fits one transform for all kernels [K, N_i], and solves each with it."""
    config, rows, valid = group.config, seen.rows, seen.valid
    fitted = fit(seen.moments, rows, valid, list(kernels.values()), key, config)
    moment = second_moment(seen.moments)
    forward = fitted.transform.forward
    solved = {
        name: solve(kernel, forward, moment, rows, valid, config)
        for name, kernel in kernels.items()
    }
    compared = {}
    if compare:
        plain = [jnp.asarray(t) for t in _orthogonal(config.block)]
        for name, kernel in kernels.items():
            errors = [measure.orthogonal_error(kernel, t, rows, valid, config) for t in plain]
            compared[name] = (errors[0], errors[1])
    return _Slice(fitted, solved, compared)


def _orthogonal(block: int) -> Iterator[np.ndarray]:
    """The transforms that every layer is compared with: identity and Hadamard."""
    yield np.eye(block, dtype=np.float32)
    yield hadamard.matrix(block)


def _facts(done: _Slice) -> dict[str, Any]:
    """What the host wants to know of a slice, still on the device."""
    fitted = done.fitted
    return {
        "predicted": fitted.predicted,
        "predicted_hadamard": fitted.predicted_hadamard,
        "condition": fitted.condition,
        "measured": {name: solved.measured for name, solved in done.solved.items()},
        "compared": done.compared,
    }


def _hold(facts: Sequence[Mapping[str, Any]], config: LayerConfig) -> Held:
    """Powers of two that make the group's numbers exact, see `formats.exactness`."""
    names = facts[0]["measured"]

    def ranges(field: str) -> dict[str, list[Range]]:
        return {
            name: [Range(*map(int, getattr(fact["measured"][name], field))) for fact in facts]
            for name in names
        }

    weights, activations = ranges("weight_range"), ranges("act_range")
    return exactness.hold(weights, activations, config.format, config.act_format)


def _row(
    group: Group,
    name: str,
    index: tuple[int, ...],
    tokens: int,
    fact: Mapping[str, Any],
    scores: Mapping[str, float],
) -> LayerReport:
    config, layer = group.config, group.layers[name]
    measured = fact["measured"][name]
    identity, plain_hadamard = fact["compared"].get(name, (None, None))
    return LayerReport(
        path=name + (str(list(index)) if index else ""),
        shares=group.leader,
        shape=(layer.features, layer.outputs),
        format=str(config.format),
        act_format=None if config.act_format is None else str(config.act_format),
        transform=config.transform,
        block=config.block,
        tokens=tokens,
        predicted=float(fact["predicted"].sum()),
        predicted_hadamard=float(fact["predicted_hadamard"].sum()),
        error=float(measured.error),
        error_identity=None if identity is None else float(identity),
        error_hadamard=None if plain_hadamard is None else float(plain_hadamard),
        condition=float(fact["condition"].max()),
        weight_span=float(measured.weight_span),
        act_span=float(measured.act_span),
        strength=config.strength,
        solver=config.solver + ("+search" if config.scale_search else ""),
        online=transform_cost(config, [each.outputs for each in group.layers.values()]),
        candidates=scores,
    )
