"""Reports: of a quantized model, and of layers made by hand, with and without comparisons."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import jax
import pytest

import wush_jax
from tests.support import flax_models as models
from wush_jax import Config, Report, Rule
from wush_jax.quantization.report.rows import LayerReport, both_formats, transform_cost

KEY = jax.random.key(2)
LAYER = LayerReport(
    path="up",
    shares="up",
    shape=(64, 48),
    format="mxfp4/wush",
    act_format="mxfp4/wush",
    transform="wush",
    block=32,
    tokens=512,
    predicted=1.5,
    predicted_hadamard=2.5,
    error=0.01,
    error_identity=0.04,
    error_hadamard=0.02,
    condition=3.5,
    weight_span=2.5,
    act_span=4.5,
)
SHARED = dataclasses.replace(LAYER, path="gate[0]", error=0.04, error_identity=0.16)
FULL = Report((LAYER, SHARED), {"head": "rule '[hH]ead'"}, ("no_such[a-z]",))


def without(*layers: LayerReport) -> Report:
    """Those layers' report where no comparison was asked for."""
    bare = {"error_identity": None, "error_hadamard": None}
    return Report(tuple(dataclasses.replace(layer, **bare) for layer in layers), {}, ())


def cells(report: Report, column: str) -> list[str]:
    return next(list(map(str, c.cells)) for c in report.table().columns if c.header == column)


def test_report_prints_writes_and_plots(tmp_path):
    model, x = models.Mlp(), jax.random.normal(KEY, (4, 16, 32))
    params, config = models.init(model, x)["params"], Config(gauges=1, sample_tokens=32)
    _, report = wush_jax.quantize(params, [x], model=model, config=config, return_report=True)
    assert "down" in str(report)
    report.to_json(tmp_path / "report.json")
    rows = json.loads((tmp_path / "report.json").read_text())["layers"]
    assert [row["path"] for row in rows] == ["up", "down"]
    assert all(0 < row["error"] < 0.1 for row in rows)
    assert all(row["predicted"] <= row["predicted_hadamard"] for row in rows)
    assert all(row["error_identity"] > 0 < row["error_hadamard"] for row in rows)
    report.plot(tmp_path / "layers.png")
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert {p.name for p in tmp_path.iterdir()} == {"report.json", "layers.png"}


def test_table_of_errors_beside_identity_and_hadamard():
    assert cells(FULL, "layer") == ["up", "gate[0] ↑"]
    assert cells(FULL, "error") == ["0.01000", "0.04000"]
    assert cells(FULL, "/ identity") == ["0.25", "0.25"]
    assert cells(FULL, "/ hadamard") == ["0.50", "2.00"]
    text = str(FULL)
    assert "geometric mean 0.02000, identity 0.08000, Hadamard 0.02000; ↑ shares" in text
    assert "kept in float: head (rule '[hH]ead')\nrule matched no layer: 'no_such[a-z]'" in text


def test_without_comparisons_they_are_neither_shown_nor_averaged(tmp_path):
    report = without(LAYER, SHARED)
    assert cells(report, "/ identity") == cells(report, "/ hadamard") == ["-", "-"]
    text = str(report)
    assert "geometric mean 0.02000; ↑ shares" in text
    assert "Hadamard" not in text
    assert report.mean_error() == pytest.approx(0.02)
    for field, name in (("error_identity", "identity"), ("error_hadamard", "Hadamard")):
        message = rf"no {field}: .* compared with {name} only .*return_report=True"
        with pytest.raises(ValueError, match=message):
            report.mean_error(field)
    report.to_json(tmp_path / "report.json")
    rows = json.loads((tmp_path / "report.json").read_text())["layers"]
    assert [(row["error_identity"], row["error_hadamard"]) for row in rows] == [(None, None)] * 2


@pytest.mark.parametrize(
    ("report", "series"),
    [
        (FULL, ["identity (g", "hadamard (g", "wush (g"]),
        (without(LAYER, SHARED), ["wush (geometric mean 0.0200)"]),
        (Report((LAYER, *without(SHARED).layers), {}, ()), ["wush (g"]),  # not of every layer
    ],
)
def test_the_plot_has_the_series_that_there_are(tmp_path, monkeypatch, report, series):
    pytest.importorskip("matplotlib")
    from wush_jax.reporting import figures

    drawn = []
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure))
    report.plot(tmp_path / "layers.png")
    (axes,) = drawn[0].axes
    names = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert len(names) == len(series)
    assert all(name.startswith(start) for name, start in zip(names, series, strict=True))
    assert len(axes.collections) == (len(series) > 1)  # the lines from WUSH to Hadamard


def test_figures_that_are_not_finite_are_null_in_json(tmp_path):
    odd = dataclasses.replace(
        LAYER, error=math.inf, weight_span=math.nan, candidates={"a": -math.inf}
    )
    report = Report((odd,), {}, ())
    report.to_json(tmp_path / "report.json")
    data = json.loads((tmp_path / "report.json").read_text(), parse_constant=pytest.fail)
    (row,) = data["layers"]
    assert (row["error"], row["weight_span"], row["candidates"]) == (None, None, {"a": None})
    assert row["shape"] == [64, 48]
    assert data == report.as_dict()
    whole = FULL.as_dict()
    assert {k: whole[k] for k in ("skipped", "unused_rules")} == {
        "skipped": {"head": "rule '[hH]ead'"},
        "unused_rules": ["no_such[a-z]"],
    }


def test_a_report_of_no_layer_is_shown(tmp_path):
    report = Report((), {"head": "a rule"}, ())
    assert "kept in float: head (a rule)" in str(report)
    with pytest.raises(ValueError, match="no layer was quantized"):
        report.mean_error()
    with pytest.raises(ValueError, match="no layer was quantized"):
        report.plot(tmp_path / "layers.png")
    assert list(tmp_path.iterdir()) == []


def test_rules_name_a_stack_once():
    rules = Report((LAYER, SHARED, dataclasses.replace(SHARED, path="gate[1]")), {}, ()).rules()
    options = {"transform": "wush", "transform_block": 32, "strength": 1.0}
    assert rules == (Rule("^up$", **options), Rule("^gate$", **options))
    assert all(re.compile(rule.pattern) for rule in rules)


def test_formats_and_the_online_cost():
    assert both_formats("mxfp4", "mxfp4") == "mxfp4"
    assert both_formats("mxfp4", None) == "mxfp4, float"
    assert (
        both_formats("mxfp4", "int8")
        == dataclasses.replace(LAYER, format="mxfp4", act_format="int8").formats
        == "mxfp4, int8"
    )
    for transform, cost in (("identity", 0), ("hadamard", 5), ("wush", 32)):
        config = Config(transform=transform).layer()
        assert transform_cost(config, [48, 16]) == cost / 64
