"""What the table of the language model example has in its rows, and says of their order."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import wush_jax
from examples.lm import order, results
from examples.lm.grid import OURS, SEARCH, grid


class TestGrid:
    def test_rows(self):
        rows = grid()
        assert len(rows) == 3 * (5 * 2 + 4)
        assert len({row.name for row in rows}) == len(rows)
        configs = {row.name: row.config for row in rows}
        paper = configs["mxfp4 wush gptq"]
        assert (paper.objective, paper.refine, paper.gauges) == ("W", 0, 1)
        assert not paper.scale_search
        hadamard = configs["nvfp4 hadamard gptq"]
        assert (hadamard.objective, hadamard.refine) == ("W", 0)
        wide = configs["int4 wush-128 gptq"]
        assert (wide.transform_block, wide.gauges, wide.refine) == (128, 16, 0)
        ours = wush_jax.Config(format="mxfp4", solver="gptq")
        assert configs[f"mxfp4 wush {OURS}"] == ours
        best = dataclasses.replace(ours, transform_block=128, scale_search=True)
        assert configs[f"mxfp4 wush-128 {SEARCH}"] == best
        assert [row.name for row in rows if row.sequential] == [
            f"{fmt} wush-128 {SEARCH}, sequential" for fmt in ("mxfp4", "nvfp4", "int4")
        ]

    def test_chosen_rows(self):
        rows = grid(["int4"], ["hadamard", "wush@0.5"], ["rtn"], ours=False, auto=True)
        assert [(row.transform, row.solver) for row in rows] == [
            ("hadamard", "rtn"),
            ("wush@0.5", "rtn"),
            ("auto", SEARCH),
        ]
        assert rows[1].config.strength == 0.5
        for wrong in (["fp3"], ["wush"], ["rtn"]), (["int4"], ["wash"], ["rtn"]):
            with pytest.raises(ValueError, match=r"fp3|wash"):
                grid(*wrong)
        with pytest.raises(ValueError, match="best"):
            grid(["int4"], ["wush"], ["best"])


def result(name: str, delta: list[float]) -> results.Result:
    format, transform, solver = name.split(" ", 2)
    ones, kl = [1.0] * len(delta), [10 * d for d in delta]
    return results.Result(format, transform, solver, ones, delta, ones, kl, ones, ones)


DELTA = {
    "mxfp4 hadamard rtn": [0.30, 0.30, 0.30],
    "mxfp4 hadamard gptq": [0.20, 0.23, 0.20],
    "mxfp4 wush gptq": [0.21, 0.21, 0.21],
    f"mxfp4 wush {OURS}": [0.27, 0.27, 0.27],
    f"mxfp4 wush-128 {OURS}": [0.24, 0.27, 0.24],
}


class TestOrder:
    def compare(self, delta, error=0.01):
        losses = {"float": [0.0] * 3, **delta}

        def difference(a, b, seed, metric):
            scale = {"loss": 1, "kl": 10}[metric]
            return scale * (losses[a][seed] - losses[b][seed]), scale * error

        return order.compare([result(name, d) for name, d in delta.items()], difference)

    def test_each_step_with_its_error(self):
        everything = self.compare(DELTA)
        found = [c for c in everything if c.metric == "loss"]
        assert [c.lower for c in found] == [
            "float model",
            f"best of ours (wush-128, {OURS})",
            "the paper's best (wush, gptq)",
            "Hadamard GPTQ",
        ]
        assert [c.verdict for c in found] == ["holds", "reversed", "not told apart", "holds"]
        np.testing.assert_allclose(
            [c.difference for c in found], [0.25, -0.04, 0, 0.09], atol=1e-12
        )
        # text: 0.01, alike for all seeds; calibration: a deviation of 0.03 / sqrt(3), and 3 seeds
        np.testing.assert_allclose([c.error for c in found], np.hypot(0.01, 0.01))
        by_kl = [c for c in everything if c.metric == "kl"]
        assert [(c.lower, c.verdict) for c in by_kl] == [(c.lower, c.verdict) for c in found[1:]]
        np.testing.assert_allclose([c.difference for c in by_kl], [-0.4, 0, 0.9], atol=1e-12)

    def test_statement_says_what_holds(self):
        said = order.statement(self.compare(DELTA))
        assert "mxfp4, loss: 2 of 4 steps of the order hold" in said
        assert "mxfp4, kl: 1 of 3 steps of the order hold" in said
        assert "Hadamard GPTQ < Hadamard RTN: +0.09000 ± 0.01414 nats, 6.4 errors: holds" in said
        assert "3 calibration seeds" in said
        assert "on this very text" in said

    def test_what_is_not_known_is_not_claimed(self):
        found = self.compare(DELTA, error=float("nan"))  # a single sequence
        assert {c.verdict for c in found} == {"not told apart"}
        assert self.compare({f"mxfp4 wush {SEARCH}": [0.1] * 3})[0].lower == "float model"
        assert self.compare({"mxfp4 identity rtn": [0.1] * 3}) == []
        assert order.statement([]) == ""

    def test_from_dict(self):
        for comparison in self.compare(DELTA):
            data = json.loads(json.dumps(comparison.as_dict()))
            assert data["verdict"] == comparison.verdict
            assert order.from_dict(data) == comparison
