"""The pipeline: calibrate, fit a transform to each input, solve each kernel, rebuild the params."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from wush_jax.config import Config, LayerConfig
from wush_jax.fitting import measure, solve
from wush_jax.fitting.auto import choose_transform
from wush_jax.fitting.fit import fit
from wush_jax.formats import exactness as exponents
from wush_jax.formats.exactness import Held, Range
from wush_jax.frontends.linen.discover import Layer
from wush_jax.frontends.linen.run import is_variables
from wush_jax.layers import stacking, trees
from wush_jax.layers.contraction import kernel_to_matrix
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.layers.sharding import place
from wush_jax.quantization.calibrate import calibrate, check_kernels
from wush_jax.quantization.calibration import Calibration
from wush_jax.quantization.plan import Plan
from wush_jax.quantization.report.report import Report
from wush_jax.quantization.report.rows import LayerReport, transform_cost
from wush_jax.reporting.progress import track
from wush_jax.statistics.moments import Mask, second_moment
from wush_jax.statistics.running import Statistics
from wush_jax.transforms import hadamard


def quantize(
    params: Mapping[str, Any],
    calib_batches: Iterable[Any] | Calibration,
    *,
    model: nn.Module | None = None,
    config: Config | None = None,
    mask: Callable[[Any], Mask] | None = None,
    key: PRNGKeyArray | None = None,
    donate: bool = False,
    progress: bool | None = None,
    return_report: bool = False,
) -> Any:
    """Quantizes a Flax Linen model's linear layers, calibrated on ``calib_batches``.

    The model runs in floating point over the batches, once. Layer by layer the kernel is then
    replaced by a `QuantizedKernel`; every other leaf comes back as the same object. Run the result
    with `wush_jax.apply`.

    Args:
      params: the params, or the whole variables dict (the same comes back).
      calib_batches: any iterable, consumed once. With ``model``, each batch is what the model
        takes: a tuple of positional arguments, a mapping of keyword arguments, or the one argument.
        Without, each batch maps a module path ("layer_0/mlp/up") to that module's input [..., K].
        Or the result of `wush_jax.calibrate`, which is not consumed.
      model: the Flax Linen model.
      config: what to do; the default is MXFP4 weights and activations, WUSH, round to nearest.
      mask: from a batch to an array, non-zero where a token counts ([batch, length]); it applies
        to layers whose inputs have these leading axes (or, flattened, as many rows).
      key: for what is random (the token sample, transform "random"); default ``jax.random.key(0)``.
      donate: delete each float kernel's buffer once its quantized form exists, so that memory
        peaks at the model plus one layer. The caller's ``params`` are then unusable.
      progress: a progress bar on stderr; None shows it on a terminal only.
      return_report: also return the `Report`.

    Returns:
      The quantized params (or variables), or a pair with the report.

    Raises:
      ValueError: naming the module path, what was found and what would fit: no batch, a layer that
        no batch reached, NaN or Inf in a kernel or its inputs, a K that does not split into blocks.
    """
    config = Config() if config is None else config
    key = jax.random.key(0) if key is None else key
    variables = trees.plain(params if is_variables(params) else {"params": params})
    draw_key = jax.random.split(key)[1]
    if isinstance(calib_batches, Calibration):
        calibration = calib_batches
    else:
        calibration = calibrate(
            params,
            calib_batches,
            model=model,
            config=config,
            mask=mask,
            key=key,
            progress=progress,
            full=False,
        )
    planned = calibration.plan(config, variables["params"])
    statistics, sources = dict(calibration.statistics), calibration.sources
    del calibration  # an own one's statistics go, input by input, as their layers are done

    kernels = trees.kernel_paths(variables["params"])
    check_kernels(planned, kernels)
    replaced: dict[str, QuantizedKernel] = {}
    rows: list[LayerReport] = []
    groups = planned.groups()
    users = collections.Counter(sources[leader] for leader in groups)
    for i, leader in enumerate(track(list(groups), "quantizing", progress)):
        seen, group_key = statistics[sources[leader]], jax.random.fold_in(draw_key, i)
        users[sources[leader]] -= 1
        if not users[sources[leader]]:
            del statistics[sources[leader]]
        solved = _solve_group(leader, groups[leader], kernels, planned, seen, group_key)
        for path, (quantized, reports) in solved.items():
            replaced[path] = place(quantized, kernels[path], planned.layers[path], path)
            rows.extend(reports)
            if donate and isinstance(kernels[path], jax.Array):
                jax.block_until_ready(replaced[path])
                kernels[path].delete()

    report = Report(tuple(rows), planned.skipped, planned.unused_rules())
    report.warn()
    out = {**variables, "params": trees.replace_kernels(variables["params"], replaced)}
    out = out if is_variables(params) else out["params"]
    return (out, report) if return_report else out


def _solve_group(
    leader: str,
    members: list[str],
    kernels: Mapping[str, Array],
    planned: Plan,
    seen: Statistics,
    key: PRNGKeyArray,
) -> dict[str, tuple[QuantizedKernel, list[LayerReport]]]:
    """Quantizes the layers that share one transform; one slice of a stack (or expert) at a time."""
    lead = seen.moments.count.shape  # [*stack, *batch]
    matrices = {p: slices(kernels[p], planned.layers[p], lead) for p in members}
    config, scores = planned.configs[leader], {}
    if config.transform == "auto":
        config, scores = choose_transform(seen, list(matrices.values()), config, key)
        planned.configs.update(dict.fromkeys(members, config))
    solutions: dict[str, list[solve.Solved]] = {p: [] for p in members}
    reports: dict[str, list[LayerReport]] = {p: [] for p in members}
    for i, index in enumerate(itertools.product(*map(range, lead))):
        here: Statistics = jax.tree.map(lambda leaf, at=index: leaf[at], seen)
        group = {p: matrices[p](index) for p in members}
        fitted = fit(
            here.moments,
            here.rows,
            here.valid,
            list(group.values()),
            jax.random.fold_in(key, i),
            config,
        )
        moment = second_moment(here.moments)
        for path, kernel in group.items():
            solved = solve.solve(
                kernel, fitted.transform.forward, moment, here.rows, here.valid, config
            )
            identity, plain_hadamard = (
                measure.orthogonal_error(kernel, t, here.rows, here.valid, config)
                for t in map(jnp.asarray, (np.eye(config.block), hadamard.matrix(config.block)))
            )
            solutions[path].append(solved)
            name = path + (str(list(index)) if index else "")
            reports[path].append(
                LayerReport(
                    path=name,
                    shares=leader,
                    shape=(kernel.shape[0], kernel.shape[1]),
                    format=str(config.format),
                    act_format=None if config.act_format is None else str(config.act_format),
                    transform=config.transform,
                    block=config.block,
                    tokens=int(here.moments.count),
                    predicted=float(fitted.predicted.sum()),
                    predicted_hadamard=float(fitted.predicted_hadamard.sum()),
                    error=float(solved.measured.error),
                    error_identity=float(identity),
                    error_hadamard=float(plain_hadamard),
                    condition=float(fitted.condition.max()),
                    weight_span=float(solved.measured.weight_span),
                    act_span=float(solved.measured.act_span),
                    strength=config.strength,
                    solver=config.solver + ("+search" if config.scale_search else ""),
                    online=transform_cost(config, [k.shape[1] for k in group.values()]),
                    candidates=scores,
                )
            )
    held = _exponents(solutions, config)
    return {
        p: (_assemble(solutions[p], held, p, planned, str(kernels[p].dtype), lead), reports[p])
        for p in members
    }


def _exponents(solutions: Mapping[str, list[solve.Solved]], config: LayerConfig) -> Held:
    measured = jax.device_get({p: [s.measured for s in solved] for p, solved in solutions.items()})

    def ranges(name: str) -> dict[str, list[Range]]:
        return {p: [Range(*map(int, getattr(m, name))) for m in ms] for p, ms in measured.items()}

    return exponents.hold(
        ranges("weight_range"), ranges("act_range"), config.format, config.act_format
    )


def slices(kernel: Array, layer: Layer, lead: tuple[int, ...]) -> Callable[[tuple], Array]:
    """index over [*stack, *batch] -> that slice of a kernel as a matrix [K, N]."""
    kernel = stacking.to_front(kernel, layer.stack_axes)
    stack_ndim = kernel.ndim - len(layer.kernel_shape)

    def at(index: tuple[int, ...]) -> Array:
        matrix = kernel_to_matrix(kernel[index[:stack_ndim]], layer.contraction.roles)
        return matrix[index[stack_ndim:]]

    return at


def _assemble(
    solved: list[solve.Solved],
    held: Held,
    path: str,
    planned: Plan,
    dtype: str,
    lead: tuple[int, ...],
) -> QuantizedKernel:
    """One kernel from the solutions of its slices, in the order of ``itertools.product``."""

    def gather(*leaves: Array) -> Array:
        return jnp.stack(leaves).reshape(*lead, *leaves[0].shape) if lead else leaves[0]

    solution, act_global = jax.tree.map(gather, *[(s.solution, s.act_global_scale) for s in solved])
    rows = gather(*[jnp.asarray([pair], jnp.int32) for pair in held.exponents])
    return assemble(solution, act_global, rows, held.exact_in[path], path, planned, dtype)


def assemble(
    solution: Any,
    act_global_scale: Array | None,
    rows: Array,
    exact_in: str,
    path: str,
    planned: Plan,
    dtype: str,
) -> QuantizedKernel:
    """A layer's `QuantizedKernel` from arrays [*stack, *batch, ...], stacked axes put in place.

    ``rows`` are its exponents [*stack, *batch, 1, 2].
    """
    layer, config = planned.layers[path], planned.configs[path]
    codes, scales, global_scale, transform, act, held = jax.tree.map(
        lambda leaf: stacking.from_front(leaf, layer.stack_axes),
        (*solution, act_global_scale, None if exact_in == "float32" else rows),
    )
    return QuantizedKernel(
        codes,
        scales,
        global_scale,
        act,
        transform,
        exponents=held,
        exact_in=exact_in,
        format=config.format,
        act_format=config.act_format,
        transform_name=config.transform,
        block=config.block,
        kernel_shape=tuple(layer.kernel_shape),
        roles=layer.contraction.roles,
        dtype=dtype,
        stack_axes=layer.stack_axes,
        shared_input=planned.shared_input(path),
    )
