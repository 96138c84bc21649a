"""Grids: texts to configurations, the names and labels of rows, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from wush_jax import Config, Grid, grid


def of(format_name: str, transform: str, solver: str, base: Config | None = None) -> Config:
    (config,) = grid([format_name], [transform], [solver], base=base).values()
    return config


def test_texts_of_the_grid():
    base = Config(transform_block=64, strength=0.5, scale_search=True)
    plain = of("int4", "wush", "rtn", base)
    assert plain == dataclasses.replace(base, format="int4", transform="wush")
    full = of("mxfp4", "wush-128@0.75", "gptq+search")
    assert full == Config(
        transform_block=128, strength=0.75, solver="gptq", scale_search=True, transform="wush"
    )
    assert of("mxfp4", "auto", "rtn", base).transform == "auto"


def test_every_combination_by_name_and_label():
    made = grid(("mxfp4",), ("wush-128", "identity"), ("rtn", "gptq+search"))
    assert list(made) == [
        "mxfp4 wush-128 rtn",
        "mxfp4 wush-128 gptq+search",
        "mxfp4 identity rtn",
        "mxfp4 identity gptq+search",
    ]
    assert list(made.labels.values()) == ["wush-128", "wush-128", "identity", "identity"]
    assert len(grid()) == len(made) * 2


def test_grids_and_configurations_of_ones_own_are_joined():
    wide, own = grid(["int4"], ["wush-64"], ["rtn"]), Config(solver="gptq")
    both = grid(["mxfp4"], ["wush-128"], ["rtn"]) | wide | {"mine": own, "int4 wush-64 rtn": own}
    assert isinstance(both, Grid)
    assert list(both) == ["mxfp4 wush-128 rtn", "int4 wush-64 rtn", "mine"]
    assert both["mine"] is both["int4 wush-64 rtn"] is own
    assert list(both.labels.values()) == ["wush-128", "int4 wush-64 rtn", "mine"]
    assert list(wide) == ["int4 wush-64 rtn"]


REFUSED: dict[str, tuple[Any, str]] = {
    "format": ({"formats": ["fp5"]}, "fp5"),
    "transform": ({"transforms": ["wash"]}, "'wash' names no transform"),
    "solver": ({"solvers": ["gtpq"]}, "unknown solver 'gtpq'|rtn, gptq"),
    "search": ({"solvers": ["rtn+serach"]}, "after a plus sign there is 'search' alone"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_texts_that_cannot_be_read_are_refused(name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        grid(**options)
