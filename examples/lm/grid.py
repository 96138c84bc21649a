"""The configurations that `examples.quantize_lm` compares, one for each row of its table."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import wush_jax
from wush_jax import candidates

FORMATS = ("mxfp4", "nvfp4", "int4")
TRANSFORMS = ("identity", "hadamard", "wus", "wush", "wush-128")
SOLVERS = ("rtn", "gptq")


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to quantize.

    Attributes:
      format, transform, solver: as the table calls them.
      config: what `wush_jax.quantize` gets.
    """

    format: str
    transform: str
    solver: str
    config: wush_jax.Config

    @property
    def name(self) -> str:
        return f"{self.format} {self.transform} {self.solver}"


def grid(
    formats: Sequence[str] = FORMATS,
    transforms: Sequence[str] = TRANSFORMS,
    solvers: Sequence[str] = SOLVERS,
    *,
    best: bool = True,
    auto: bool = False,
) -> list[Row]:
    """Every format x transform x solver, a format's rows together.

    Args:
      transforms: names, with D where it is not the format's group size: "wush-128".
      best: one more row a format, of the most accurate settings: WUSH with D = 128 by GPTQ with
        scale search.
      auto: another one, which chooses every layer's transform itself, by the same solver.

    Raises:
      ValueError: an unknown format, transform or solver.
    """
    rows = []
    for format in formats:
        for transform in transforms:
            spec = candidates.parse(transform)
            base = wush_jax.Config(
                format=format,
                transform=spec.name,
                transform_block=spec.block or None,
                strength=spec.strength,
            )
            for solver in solvers:
                config = dataclasses.replace(base, solver=solver)
                rows.append(Row(format, transform, solver, config))
        search = wush_jax.Config(format=format, solver="gptq", scale_search=True)
        if best:
            config = dataclasses.replace(search, transform_block=128)
            rows.append(Row(format, "wush-128", "gptq, search", config))
        if auto:
            config = dataclasses.replace(search, transform="auto")
            rows.append(Row(format, "auto", "gptq, search", config))
    return rows
