"""Formats x transforms x solvers as configurations by name."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from wush_jax.config import Config
from wush_jax.transforms import spec as transforms_lib


@dataclasses.dataclass(frozen=True, eq=False)
class Grid(Mapping[str, Config]):
    """Configurations by name, as `wush_jax.grid` makes them: "mxfp4 wush-128 gptq+search".

    ``grid | other`` adds the configurations of another grid, or of any mapping from name to
    `wush_jax.Config`; of a name in both, the other's counts.

    Attributes:
      configs: name -> `wush_jax.Config`.
      labels: name -> what a table calls its row: the transform, as it was written.
    """

    configs: Mapping[str, Config]
    labels: Mapping[str, str]

    def __getitem__(self, name: str) -> Config:
        return self.configs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.configs)

    def __len__(self) -> int:
        return len(self.configs)

    def __or__(self, other: Mapping[str, Config]) -> Grid:
        return Grid({**self, **other}, {**self.labels, **labels(other)})


def labels(configs: Mapping[str, Config]) -> Mapping[str, str]:
    """What a table calls the row of each configuration: a grid's labels, else the names."""
    return configs.labels if isinstance(configs, Grid) else {name: name for name in configs}


def grid(
    formats: Sequence[str] = ("mxfp4", "nvfp4"),
    transforms: Sequence[str] = ("hadamard", "wush"),
    solvers: Sequence[str] = ("rtn", "gptq"),
    *,
    base: Config | None = None,
) -> Grid:
    """Every format x transform x solver, for `wush_jax.sweep`.

        wush_jax.grid(transforms=("hadamard", "wush-128@0.75"), solvers=("rtn", "gptq+search"))

    Args:
      formats: as `wush_jax.Config.format` takes them ("mxfp4/ocp").
      transforms: names, with D and strength where they are not the defaults ("wush-128",
        "wush-128@0.75"); "auto".
      solvers: "rtn", "gptq"; "rtn+search" and "gptq+search" search the weights' scales as well.
      base: all else (rules, act_format, pad, ...), and D and strength where a transform names none;
        default: ``Config()``.

    Returns:
      A mapping from "format transform solver", solvers varying fastest, to `wush_jax.Config`; ``|``
        joins it with further ones. It remembers how each transform was written.

    Raises:
      ValueError: a text that cannot be read, or an unknown name.
    """
    base = Config() if base is None else base
    configs, written = {}, {}
    for format_name, transform, solver in itertools.product(formats, transforms, solvers):
        name = f"{format_name} {transform} {solver}"
        configs[name] = _configuration(format_name, transform, solver, base)
        written[name] = transform
    return Grid(configs, written)


def _configuration(format_name: str, transform: str, solver: str, base: Config) -> Config:
    """``base`` with a grid's three texts, such as "mxfp4", "wush-128@0.75" and "gptq+search"."""
    changes: dict[str, Any] = {"transform": transform}
    if transform != "auto":
        spec = transforms_lib.parse(transform)
        changes = {"transform": spec.name, "transform_block": spec.block or base.transform_block}
        changes["strength"] = spec.strength if "@" in transform else base.strength
    name, plus, search = solver.partition("+")
    if plus and search != "search":
        raise ValueError(f"solver {solver!r}: after a plus sign there is 'search' alone")
    changes["scale_search"] = bool(plus) or base.scale_search
    return dataclasses.replace(base, format=format_name, solver=name, **changes)
