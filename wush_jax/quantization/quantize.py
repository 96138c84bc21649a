"""The pipeline: calibrate, fit a transform to each input, solve each kernel, rebuild the params."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from wush_jax.config import Config
from wush_jax.frontends import select
from wush_jax.layers import trees
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.layers.sharding import place
from wush_jax.quantization.calibrate import calibrate, check_finite
from wush_jax.quantization.calibration import Calibration
from wush_jax.quantization.group import Group, solve_group
from wush_jax.quantization.report.report import Report
from wush_jax.quantization.report.rows import LayerReport
from wush_jax.reporting.progress import track
from wush_jax.statistics.moments import Mask


def quantize(
    params: Any,
    calib_batches: Iterable[Any] | Calibration,
    *,
    model: Any = None,
    config: Config | None = None,
    mask: Callable[[Any], Mask] | None = None,
    key: PRNGKeyArray | None = None,
    donate: bool = False,
    progress: bool | None = None,
    return_report: bool = False,
) -> Any:
    """Quantizes a model's linear layers to a few bits, calibrated on ``calib_batches``.

    The model runs in floating point over the batches, once. Layer by layer a transform is fitted
    (WUSH: arXiv 2512.00956) and the kernel replaced by a `QuantizedKernel`; every other leaf comes
    back as the same object. Run the result with `wush_jax.apply`, or a function of it with
    `wush_jax.quantized`.

    Args:
      params: the params, or the whole variables dict (the same comes back).
      calib_batches: any iterable, consumed once. With ``model``, each batch is what the model
        takes: a tuple of positional arguments, a mapping of keyword arguments, or the one argument.
        Without, each batch maps a module path ("layer_0/mlp/up") to that module's input [..., K].
        Or the result of `wush_jax.calibrate`, which is not consumed.
      model: a Flax Linen model; a function ``fn(params, *batch)`` of any pytree of params; or any
        `wush_jax.frontends.protocol.FrontEnd`.
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
    if not isinstance(calib_batches, Calibration):
        calib_batches = calibrate(
            params,
            calib_batches,
            model=model,
            config=config,
            mask=mask,
            key=key,
            progress=progress,
            full=False,
        )
    out, report = run(
        params,
        calib_batches,
        model=model,
        config=config,
        key=key,
        donate=donate,
        progress=progress,
        compare=return_report,
    )
    report.warn()
    return (out, report) if return_report else out


def run(
    params: Any,
    calibration: Calibration,
    *,
    model: Any,
    config: Config,
    key: PRNGKeyArray,
    donate: bool = False,
    progress: bool | None = None,
    compare: bool = False,
) -> tuple[Any, Report]:
    """`quantize` behind calibration, always with a report.

    Args:
      compare: whether the report compares layers with identity and Hadamard.
    """
    front = select.front_end(model)
    variables = front.variables(params)
    weights = front.weights(variables)
    plan = calibration.plan(config, front.expected(variables))
    check_finite(plan, weights)
    statistics, sources = dict(calibration.statistics), calibration.sources
    del calibration  # an own one's statistics go, input by input, as their layers are done

    kernels: dict[str, QuantizedKernel] = {}
    rows: list[LayerReport] = []
    groups = plan.groups()
    users = collections.Counter(sources[leader] for leader in groups)
    draw_key = jax.random.split(key)[1]
    for i, leader in enumerate(track(list(groups), "quantizing", progress)):
        source, names = sources[leader], groups[leader]
        users[source] -= 1
        group = Group(
            leader,
            {name: plan.layers[name] for name in names},
            plan.configs[leader],
            {name: weights[name] for name in names},
            statistics[source] if users[source] else statistics.pop(source),
            jax.random.fold_in(draw_key, i),
        )
        solved, group_rows = solve_group(group, compare=compare)
        rows += group_rows
        for name, kernel in solved.items():
            kernels[name] = place(kernel, weights[name], plan.layers[name])
            if donate:
                trees.delete([weights[name]], after=kernels[name])
    report = Report(tuple(rows), plan.skipped, plan.unused_rules())
    return front.replaced(params, kernels), report
