"""The configurations that `examples.quantize_lm` compares, one for each row of its table."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import wush_jax

FORMATS = ("mxfp4", "nvfp4", "int4")
TRANSFORMS = ("identity", "hadamard", "wus", "wush", "wush-128")
SOLVERS = ("rtn", "gptq")
OURS, SEARCH = "gptq, ours", "gptq, ours + search"  # solvers of the rows that are not the paper's
SEQUENTIAL = f"{SEARCH}, sequential"
OUR_SOLVERS = (OURS, SEARCH, SEQUENTIAL)


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to quantize.

    Attributes:
      format, transform, solver: as the table calls them.
      config: what `wush_jax.quantize` gets, or `wush_jax.quantize_blocks`.
      sequential: layer by layer, each on what the quantized layers before it put out.
    """

    format: str
    transform: str
    solver: str
    config: wush_jax.Config
    sequential: bool = False

    @property
    def name(self) -> str:
        return name_of(self.format, self.transform, self.solver)


def name_of(format: str, transform: str, solver: str) -> str:
    """A row's name."""
    return f"{format} {transform} {solver}"


def grid(
    formats: Sequence[str] = FORMATS,
    transforms: Sequence[str] = TRANSFORMS,
    solvers: Sequence[str] = SOLVERS,
    *,
    ours: bool = True,
    auto: bool = False,
) -> list[Row]:
    """Every format x transform x solver, a format's rows together.

    Solver "gptq" is GPTQ as in the paper: the objective counts the weights' rounding alone, nothing
    is refined afterwards, and a transform whose blocks are the quantization groups is the closed
    form itself, not the best of several equivalent ones. "gptq, ours" has this library's defaults
    in place of these three; "gptq, ours + search" searches for scales as well.

    Args:
      transforms: names, with D where it is not the format's group size: "wush-128".
      ours: four more rows a format: our GPTQ of WUSH and of WUSH with D = 128; the latter with
        scale search, in one pass and sequentially.
      auto: another one, which chooses every layer's transform itself, by the last of these solvers.

    Raises:
      ValueError: an unknown format, transform or solver.
    """
    rows = []
    for format in formats:
        configs = wush_jax.grid((format,), transforms, solvers)
        for transform, solver in itertools.product(transforms, solvers):
            config = configs[name_of(format, transform, solver)]
            rows.append(Row(format, transform, solver, _as_published(config)))
        defaults = wush_jax.Config(format=format, solver="gptq")
        wide = dataclasses.replace(defaults, transform_block=128)
        search = dataclasses.replace(defaults, scale_search=True)
        if ours:
            rows.append(Row(format, "wush", OURS, defaults))
            rows.append(Row(format, "wush-128", OURS, wide))
            config = dataclasses.replace(search, transform_block=128)
            rows.append(Row(format, "wush-128", SEARCH, config))
            rows.append(Row(format, "wush-128", SEQUENTIAL, config, sequential=True))
        if auto:
            rows.append(Row(format, "auto", SEARCH, dataclasses.replace(search, transform="auto")))
    return rows


def _as_published(config: wush_jax.Config) -> wush_jax.Config:
    if config.solver != "gptq":
        return config
    gauges = config.gauges if config.transform_block else 1
    return dataclasses.replace(config, objective="W", refine=0, gauges=gauges)
