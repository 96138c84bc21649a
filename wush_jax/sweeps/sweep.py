"""Many configurations, quantized from one calibration and scored: one table.

The model runs over the calibration batches once a seed, whatever the number of configurations.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import jax
from jaxtyping import PRNGKeyArray

from wush_jax.config import Config
from wush_jax.layers import trees
from wush_jax.quantization.calibrate import calibrate
from wush_jax.quantization.calibration import Calibration
from wush_jax.quantization.quantize import run
from wush_jax.quantization.report.report import Report
from wush_jax.reporting.progress import track
from wush_jax.statistics.moments import Mask
from wush_jax.sweeps import rows as rows_lib
from wush_jax.sweeps.grid import labels
from wush_jax.sweeps.result import Sweep
from wush_jax.sweeps.rows import SweepRow
from wush_jax.sweeps.score import Figures, Judge, Score, TokenScore, judge_of


def sweep(
    params: Any,
    calib_batches: Any,
    configs: Mapping[str, Config],
    *,
    model: Any = None,
    score: Score | TokenScore | Figures | None = None,
    seeds: int | Iterable[PRNGKeyArray] = 1,
    mask: Callable[[Any], Mask] | None = None,
    progress: bool | None = None,
) -> Sweep:
    """Quantizes by every configuration, scores each, and lays the results out in one table.

        wush_jax.sweep(params, batches, wush_jax.grid(), model=model,
                       score=wush_jax.TokenScore(held_out))

    Every row also has ``layer_error`` (geometric mean over layers, from the report), ``bits`` a
    weight and ``bytes`` (of the quantized kernels, transforms included), and the ``seconds`` that
    quantizing took, compilation included.

    Args:
      params: the float params, or the whole variables dict.
      calib_batches: as for `wush_jax.quantize` (K x K numbers an input are kept of them); or what
        `wush_jax.calibrate` returned; or a function from the seed's number, 0 and up, to either.
      configs: name -> `wush_jax.Config`: a `wush_jax.grid`, configurations of your own, or both.
        The first one's rules and ``sample_tokens`` are those of the calibration.
      model: as for `wush_jax.quantize`; a `TokenScore` needs it.
      score: what to judge by: `wush_jax.TokenScore`, for next-token models; a function from
        quantized params to figures by name; or `wush_jax.Score`, to say more of these.
      seeds: how many times to repeat everything, or a `jax.random.key` for each time.
      mask: as for `wush_jax.quantize`.
      progress: progress bars on stderr; None shows them on a terminal only.

    Returns:
      A `Sweep`. What raises ValueError or NotImplementedError (by a D that does not divide some K,
      say) is kept as failed, with the message.

    Raises:
      ValueError: no configuration or seed; batches that can be read once, for several seeds; a
        `TokenScore` without a model; calibration or the float model failed, or every configuration.
    """
    keys = _keys(seeds, configs, calib_batches)
    judge = judge_of(score, model, params, mask)
    first = dataclasses.replace(next(iter(configs.values())), pad=True)  # each sees to its own D
    written = labels(configs)
    rows: dict[str, SweepRow] = {}
    for seed, key in enumerate(keys):
        data: Any = calib_batches(seed) if callable(calib_batches) else calib_batches
        if not isinstance(data, Calibration):
            how = {"model": model, "config": first, "mask": mask, "progress": progress}
            data = calibrate(params, data, key=key, **how)
        for name, config in track(configs.items(), "sweeping", progress):
            row = rows_lib.row(name, written[name], config, seed)
            unique = name if len(keys) == 1 else f"{name} #{seed}"
            quantized = partial(run, params, data, model=model, config=config, key=key)
            rows[unique] = _filled(row, unique, judge, quantized)
    if all(row.failed is not None for row in rows.values()):
        row, *_ = rows.values()
        raise ValueError(f"every configuration failed; the first: {row.name}: {row.failed}")
    return judge.complete(rows)


def _keys(
    seeds: int | Iterable[PRNGKeyArray], configs: Mapping[str, Config], calib_batches: Any
) -> list[PRNGKeyArray]:
    """A key for each seed, once there is anything to do with them."""
    keys = [jax.random.key(i) for i in range(seeds)] if isinstance(seeds, int) else list(seeds)
    if not configs or not keys:
        raise ValueError(f"nothing to sweep: {len(configs)} configurations, {len(keys)} seeds")
    if len(keys) > 1 and isinstance(calib_batches, Iterator):
        raise ValueError(
            f"{type(calib_batches).__name__} can be read once, and there are {len(keys)} seeds; "
            "pass a list, a function from the seed's number to batches, or a Calibration"
        )
    return keys


def _filled(
    row: SweepRow, name: str, judge: Judge, quantized: Callable[[], tuple[Any, Report]]
) -> SweepRow:
    """``row`` with its figures, or with the message of what failed."""
    try:
        started = time.perf_counter()
        qparams, report = quantized()
        jax.block_until_ready(qparams)
        seconds = time.perf_counter() - started
        report.warn()
        kernels = trees.quantized_kernels(qparams).values()
        held = sum(kernel.nbytes for kernel in kernels)
        figures = {
            "layer_error": report.mean_error(),
            "bits": 8 * held / sum(kernel.size for kernel in kernels),
            "bytes": float(held),
            "seconds": seconds,
        }
        return dataclasses.replace(row, metrics=figures | judge.judge(name, qparams))
    except (ValueError, NotImplementedError) as error:
        return dataclasses.replace(row, failed=str(error))
