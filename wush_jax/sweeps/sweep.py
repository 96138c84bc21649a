"""Formats x transforms x solvers, quantized from one calibration and scored: one table.

The model runs over the calibration batches once a seed, whatever the number of configurations.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jaxtyping import PRNGKeyArray

from wush_jax.config import Config
from wush_jax.evaluation.evaluate import forward, named, sequence_sums
from wush_jax.evaluation.result import summarize
from wush_jax.evaluation.rows import FLOAT, Sums
from wush_jax.evaluation.targets import Targets
from wush_jax.frontends.linen.run import as_variables
from wush_jax.layers import trees
from wush_jax.quantization.calibrate import calibrate
from wush_jax.quantization.calibration import Calibration
from wush_jax.quantization.quantize import quantize
from wush_jax.reporting.progress import track
from wush_jax.statistics.moments import Mask
from wush_jax.sweeps.result import Sweep, SweepRow
from wush_jax.transforms import spec as candidates

MAXIMIZE = ("top1", "recovery", "cosine", "accuracy")
_EVALUATED = ("perplexity", "delta_loss", "kl", "top1", "recovery")


def sweep(
    params: Mapping[str, Any],
    calib_batches: Any,
    *,
    model: nn.Module | None = None,
    score: Callable[[Any], Mapping[str, float]] | None = None,
    eval_batches: Iterable[Any] | None = None,
    formats: Sequence[str] = ("mxfp4", "nvfp4"),
    transforms: Sequence[str] = ("hadamard", "wush"),
    solvers: Sequence[str] = ("rtn", "gptq"),
    configs: Mapping[str, Config] | None = None,
    config: Config | None = None,
    seeds: int | Sequence[PRNGKeyArray] = 1,
    mask: Callable[[Any], Mask] | None = None,
    targets: Targets | None = None,
    bootstrap: int = 1000,
    maximize: Collection[str] = MAXIMIZE,
    reference: Mapping[str, float] | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Quantizes in every combination, scores each, and lays the results out in one table.

    Every row also has ``layer_error`` (geometric mean over layers, from the report), ``bits`` a
    weight and ``bytes`` (of the quantized kernels, transforms included), and the ``seconds`` that
    quantizing took, compilation included.

    Args:
      params: the float params, or the whole variables dict.
      calib_batches: as for `wush_jax.quantize` (K x K numbers an input are kept of them, which
        serve every configuration); or what `wush_jax.calibrate` returned; or a function from the
        seed's number, 0 and up, to either, for data that vary with the seed.
      model: the Flax Linen model; ``eval_batches`` needs it.
      score: from quantized params to figures of yours, by name.
      eval_batches: instead of ``score``: batches for `wush_jax.evaluate`, whose perplexity,
        delta_loss, kl, top1 and recovery become the figures. They are all kept in memory.
      formats: as `Config.format` takes them ("mxfp4/ocp").
      transforms: names, with D and strength where they are not the defaults ("wush-128",
        "wush-128@0.75"); "auto".
      solvers: "rtn", "gptq"; "rtn+search" and "gptq+search" search the weights' scales as well.
      configs: name -> `Config`, in place of the grid.
      config: all else (rules, act_format, pad, ...), for the grid and for calibration; default: the
        first of ``configs``, or ``Config()``.
      seeds: how many times to repeat everything, or a `jax.random.key` for each time.
      mask: as for `wush_jax.quantize` and for `wush_jax.evaluate`.
      targets, bootstrap: as for `wush_jax.evaluate`.
      maximize: the figures of which more is better.
      reference: the float model's figures, for the table; ``eval_batches`` gives them itself.
      progress: progress bars on stderr; None shows them on a terminal only.

    Returns:
      A `Sweep`. A configuration that raises ValueError or NotImplementedError (a D that does not
      divide some K, say) is kept as failed, with the message.

    Raises:
      ValueError: a name that cannot be read, no configuration, arguments that exclude one another,
        an error of calibration or in evaluating the float model, or every configuration failed.
    """
    base = config or next(iter((configs or {}).values()), Config())
    planned = dict(_grid(formats, transforms, solvers, base) if configs is None else _rows(configs))
    keys = [jax.random.key(i) for i in range(seeds)] if isinstance(seeds, int) else list(seeds)
    if not planned or not keys:
        raise ValueError(f"nothing to sweep: {len(planned)} configurations, {len(keys)} seeds")
    if len(keys) > 1 and isinstance(calib_batches, Iterator):
        raise ValueError(
            f"{type(calib_batches).__name__} can be read once, and there are {len(keys)} seeds; "
            "pass a list, a function from the seed's number to batches, or a Calibration"
        )
    measure = None
    if eval_batches is not None:
        if model is None or score is not None:
            raise ValueError("eval_batches needs model=, and takes no score= beside it")
        measure = _measure(model, params, list(eval_batches), targets, mask)
    # of the float model alone: bad batches show before hours of quantizing
    sums = {} if measure is None else measure({})

    rows: list[SweepRow] = []
    for seed, key in enumerate(keys):
        data: Any = calib_batches(seed) if callable(calib_batches) else calib_batches
        if not isinstance(data, Calibration):
            lenient = dataclasses.replace(base, pad=True)  # what fits is each configuration's own
            data = calibrate(
                params, data, model=model, config=lenient, mask=mask, key=key, progress=progress
            )
        for name, (row, settings) in track(planned.items(), "sweeping", progress):
            row = dataclasses.replace(row, seed=seed)
            try:
                qparams, figures = _quantized(params, data, settings, key)
                if score is not None:
                    figures |= {str(k): float(v) for k, v in score(qparams).items()}
                if measure is not None:
                    sums |= measure({name if len(keys) == 1 else f"{name} #{seed}": qparams})
                row = dataclasses.replace(row, metrics=figures)
            except (ValueError, NotImplementedError) as error:
                row = dataclasses.replace(row, failed=str(error))
            rows.append(row)
    if all(row.failed is not None for row in rows):
        raise ValueError(f"every configuration failed; the first: {rows[0].name}: {rows[0].failed}")
    result = Sweep(tuple(rows), frozenset(maximize), dict(reference or {}))
    return _with_evaluations(result, sums, bootstrap) if sums else result


def _grid(
    formats: Sequence[str], transforms: Sequence[str], solvers: Sequence[str], base: Config
) -> Iterator[tuple[str, tuple[SweepRow, Config]]]:
    for format_name in formats:
        for transform in transforms:
            for solver in solvers:
                settings = configuration(format_name, transform, solver, base)
                name = f"{format_name} {transform} {solver}"
                yield name, (_row(name, transform, settings), settings)


def _rows(configs: Mapping[str, Config]) -> Iterator[tuple[str, tuple[SweepRow, Config]]]:
    for name, settings in configs.items():
        yield str(name), (_row(str(name), str(name), settings), settings)


def configuration(format_name: str, transform: str, solver: str, base: Config) -> Config:
    """``base`` with a grid's three texts, such as "mxfp4", "wush-128@0.75" and "gptq+search".

    Raises:
      ValueError: a text that cannot be read.
    """
    changes: dict[str, Any] = {"transform": transform}
    if transform != "auto":
        spec = candidates.parse(transform)
        changes = {"transform": spec.name, "transform_block": spec.block or base.transform_block}
        changes["strength"] = spec.strength if "@" in transform else base.strength
    name, plus, search = solver.partition("+")
    if plus and search != "search":
        raise ValueError(f"solver {solver!r}: after a plus sign there is 'search' alone")
    changes["scale_search"] = bool(plus) or base.scale_search
    return dataclasses.replace(base, format=format_name, solver=name, **changes)


def _row(name: str, label: str, settings: Config) -> SweepRow:
    layer = settings.layer()
    return SweepRow(
        name=name,
        label=label,
        format=str(layer.format),
        act_format=None if layer.act_format is None else str(layer.act_format),
        transform=layer.transform,
        block=layer.block,
        solver=layer.solver,
        scale_search=layer.scale_search,
    )


def _quantized(
    params: Mapping[str, Any], data: Calibration, settings: Config, key: PRNGKeyArray
) -> tuple[Any, dict[str, float]]:
    started = time.perf_counter()
    qparams, report = quantize(
        params, data, config=settings, key=key, progress=False, return_report=True
    )
    jax.block_until_ready(qparams)
    seconds = time.perf_counter() - started
    kernels = trees.quantized_kernels(qparams).values()
    held = sum(kernel.nbytes for kernel in kernels)
    return qparams, {
        "layer_error": report.mean_error(),
        "bits": 8 * held / sum(kernel.size for kernel in kernels),
        "bytes": float(held),
        "seconds": seconds,
    }


def _measure(
    model: nn.Module,
    params: Mapping[str, Any],
    batches: Sequence[Any],
    targets: Targets | None,
    mask: Callable[[Any], Mask] | None,
) -> Callable[[Mapping[str, Any]], dict[str, Sums]]:
    """A function: name -> quantized params, to per-sequence sums of each and of the float model."""
    run = forward(model)
    variables = trees.plain(as_variables(params))

    def measure(quantized: Mapping[str, Any]) -> dict[str, Sums]:
        others = named(variables, quantized)
        return sequence_sums(run, variables, others, batches, targets, mask, False)

    return measure


def _with_evaluations(result: Sweep, sums: Mapping[str, Sums], bootstrap: int) -> Sweep:
    """Rows with the figures of all evaluations, which see the same bootstrap resamples."""
    found = summarize(sums, bootstrap, jax.random.key(0))
    rows = []
    for row in result.rows:
        if row.failed is None:
            seen = found[row.name if row.name in found else f"{row.name} #{row.seed}"]
            figures = {field: getattr(seen, field) for field in _EVALUATED}
            spread = {field: getattr(seen, f"{field}_se") for field in _EVALUATED}
            row = dataclasses.replace(row, metrics={**row.metrics, **figures}, spread=spread)
        rows.append(row)
    reference = {field: getattr(found[FLOAT], field) for field in _EVALUATED}
    return dataclasses.replace(result, rows=tuple(rows), reference=reference, evaluations=found)
