"""What is made of a sweep's rows: the best, means over seeds, table, JSON and plot."""

from __future__ import annotations

import math

import pytest

from wush_jax import Sweep
from wush_jax.sweeps.rows import SweepRow


def row(name: str, format_name: str = "mxfp4/wush", seed: int = 0, **metrics: float) -> SweepRow:
    failed = None if metrics else f"no {name}"
    return SweepRow(
        name, name, format_name, format_name, "wush", 32, "rtn", False, seed, metrics, {}, failed
    )


MADE = Sweep(
    (
        row("a", kl=2.0, top1=0.9, seconds=1.0),
        row("b", kl=1.0, top1=0.8, seconds=2.0),
        row("c", "int4", kl=math.inf, top1=0.7, seconds=3.0),
        row("d", "int4"),
    ),
    frozenset({"top1"}),
)


def test_the_best_is_the_least_or_the_most_and_finite():
    assert MADE.best("kl").name == "b"
    assert MADE.best("top1").name == "a"
    assert MADE.best("top1", "int4").name == "c"
    assert MADE.best("top1", "mxfp4") == MADE.best("top1", "mxfp4/wush") == MADE.best("top1")
    for metric, formats in (("kl", "int4"), ("accuracy", None), ("kl", "nvfp4")):
        with pytest.raises(
            ValueError, match=rf"'{metric}'.* kl, top1, seconds, of mxfp4/wush, int4"
        ):
            MADE.best(metric, formats)


def test_failures_and_infinities_are_shown_and_null_in_json(tmp_path):
    text = str(MADE)
    assert "d failed: no d" in text
    assert "inf" in text
    data = MADE.as_dict()
    assert data["best"] == {"kl": "b", "top1": "a"}
    assert data["rows"][2]["metrics"]["kl"] is None
    assert data["means"][3]["failed"] == "no d"
    MADE.plot(tmp_path / "made.png")


def test_a_seed_that_failed_is_left_out_of_the_mean():
    rows = (row("a", kl=2.0), row("a", kl=4.0, seed=1), row("a", seed=2), row("b", seed=0))
    a, b = Sweep((*rows, row("b", kl=5.0, seed=1), row("b", seed=2)), frozenset()).means()
    assert (a.metrics, a.spread, a.failed) == ({"kl": 3.0}, {"kl": math.sqrt(2)}, None)
    assert (b.metrics, b.spread, b.failed) == ({"kl": 5.0}, {}, None)


def test_nothing_to_plot(tmp_path):
    with pytest.raises(ValueError, match="nothing to plot: no row has a figure"):
        Sweep((row("d"),), frozenset()).plot(tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_in_which_all_failed_is_shown():
    assert "d failed: no d" in str(Sweep((row("d"),), frozenset()))
