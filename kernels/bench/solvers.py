"""Seconds to quantize one layer by every solver, on whatever device there is.

    python -m kernels.bench.solvers [--sizes 1024,2048,4096] [--blocks 32,128] [--out FILE.json]

For a layer of K = N with inputs whose channels correlate it prints

* layer s: `wush_jax.quantize` on a finished calibration: fit, gauges, solve, measure, report;
* solve s: the solver alone;
* compile s: of the solver, which does not depend on K;
* objective: the error on calibration tokens that GPTQ minimises, as a share of rounding to
  nearest's.

Times are wall clock, the second call's; the first one compiles.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import wush_jax
from kernels.bench import cli, results
from wush_jax import formats
from wush_jax.solvers.minimise import minimise
from wush_jax.solvers.objective import Objective, losses, objective
from wush_jax.solvers.rounded import Rounded
from wush_jax.statistics import moments

TOKENS = 8192
SOLVERS = {
    "rtn": {},
    "rtn, search": {"scale_search": True},
    "gptq, as published": {"solver": "gptq", "objective": "W", "refine": 0, "gauges": 1},
    "gptq": {"solver": "gptq"},
    "gptq, search": {"solver": "gptq", "scale_search": True},
}
COLUMNS = ("format", "K = N", "D", "solver", "layer s", "solve s", "compile s", "objective")


def main() -> None:
    parser = cli.parser(__doc__, budget=480)
    parser.add_argument("--sizes", type=cli.numbers, default=[1024, 2048, 4096], help="K = N")
    parser.add_argument("--blocks", type=cli.numbers, default=[32, 128], help="D")
    parser.add_argument("--formats", type=cli.words, default=["mxfp4", "nvfp4", "int4"])
    options = parser.parse_args()
    console, started = Console(width=120), time.perf_counter()
    found = results.Results("solvers", options.out, timer="wall", tokens=TOKENS)
    for size in options.sizes:
        kernel, x = _layer(size)
        params = {"layer": {"kernel": kernel}}
        calibration = wush_jax.calibrate(params, [{"layer": x}])
        for name in options.formats:
            for block in options.blocks:
                for solver, settings in SOLVERS.items():
                    if time.perf_counter() - started > options.budget:
                        continue
                    config = wush_jax.Config(format=name, transform_block=block, **settings)
                    key = {"format": name, "K = N": size, "D": block, "solver": solver}
                    row = found.add(key, **_row(params, calibration, x, config))
                    console.print("  ".join(_cells(row)), highlight=False)
    console.print(_table(found.rows))


def _layer(size: int) -> tuple[jax.Array, jax.Array]:
    """A kernel [K, N] and inputs [M, K] that share directions, some channels large."""
    keys = jax.random.split(jax.random.key(size), 4)
    mix = jax.random.normal(keys[0], (size // 4, size)) / (size // 4) ** 0.5
    x = jax.random.normal(keys[1], (TOKENS, size // 4)) @ mix
    x = x + 0.3 * jax.random.normal(keys[2], (TOKENS, size))
    loud = jnp.exp2(jax.random.normal(jax.random.fold_in(keys[2], 1), (size,)))
    kernel = jax.random.normal(keys[3], (size, size)) / size**0.5
    return kernel, x * loud


def _row(params: Any, calibration: Any, x: jax.Array, config: wush_jax.Config) -> dict[str, float]:
    def whole() -> Any:
        return wush_jax.quantize(params, calibration, config=config, progress=False)

    whole()
    layer, _ = _timed(whole)
    row = {"layer s": layer}
    if config.solver == "rtn" and not config.scale_search:
        return row
    layer_config = dataclasses.replace(config.layer(), transform="identity")
    a, moment = params["layer"]["kernel"], moments.second_moment(moments.of(x))
    if config.solver == "rtn":
        moment = moments.diagonal_blocks(moment, config.layer().moment_block(len(a)), len(a))
    wanted = jax.jit(lambda a, m: objective(a, m, None, config.damping))(a, moment)
    clock = time.perf_counter()
    solve = jax.jit(lambda a, wanted: minimise(a, None, wanted, layer_config))
    compiled = solve.lower(a, wanted).compile()
    row["compile s"] = time.perf_counter() - clock
    compiled(a, wanted)
    row["solve s"], solution = _timed(lambda: compiled(a, wanted))
    plain = minimise(a, None, None, layer_config)
    found, nearest = (float(_loss(wanted, s, layer_config.format)) for s in (solution, plain))
    row["objective"] = found / nearest
    return row


def _loss(wanted: Objective, solution: Any, fmt: formats.Format) -> jax.Array:
    rounded = Rounded(formats.codes_to_values(solution.codes, fmt), solution.scales)
    return losses(wanted, rounded.weights(fmt, solution.global_scale.reshape(()))).sum()


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    clock = time.perf_counter()
    out = jax.block_until_ready(function())
    return time.perf_counter() - clock, out


def _cells(row: dict[str, Any]) -> list[str]:
    values = [row.get(name, "") for name in COLUMNS]
    return [f"{value:.3f}" if isinstance(value, float) else str(value) for value in values]


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(title=f"quantizing one layer on {jax.devices()[0].device_kind}")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("format", "solver") else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


if __name__ == "__main__":
    main()
