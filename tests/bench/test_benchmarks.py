"""Whole benchmarks on a CPU and tiny sizes: what they record, print, skip and draw."""

import argparse
import json

import jax
import pytest

from kernels.bench import ceilings, layers, roofline, shapes, transform_quantize

TINY = shapes.MODELS["tiny"]
NO_CEILINGS = ceilings.Ceilings(1e12, 2e12, 1e14, 2e14, {})


@pytest.fixture
def no_ceilings(monkeypatch):
    monkeypatch.setattr(ceilings, "measure", lambda *args, **kwargs: NO_CEILINGS)


def test_layers_records_times_and_reasons_and_does_not_measure_twice(
    tmp_path, monkeypatch, capsys, no_ceilings
):
    monkeypatch.setitem(shapes.MODELS, "twin", TINY)
    out = tmp_path / "results" / "run.json"
    words = f"--models tiny,twin --layers o --tokens 16 --blocks 32 --cold 0 --out {out}"
    options = layers.parser().parse_args(f"{words} --implementations no_such".split())
    layers.run(options)
    content = json.loads(out.read_text())
    row, twin = content["rows"]
    assert (row["model"], row["layer"], row["M"], row["K"], row["N"]) == ("tiny", "o", 16, 128, 128)
    assert set(row["us"]) == {"bf16", "ours"}
    assert min(row["us"].values()) > 0
    assert row["error"] == 0  # on a CPU ours is the reference
    assert "unknown implementation 'no_such'" in row["failed"]["no_such"]
    assert row["flops"] == 2 * 16 * 128 * 128
    assert row["limit_us"] == pytest.approx(row["bytes"]["ours"] / 1e12 * 1e6)
    assert twin["same_as"] == "tiny"
    assert twin["us"] == row["us"]
    run = content["runs"][row["run"]]
    assert run["timer"] == "wall"
    assert run["versions"]["jax"] == jax.__version__
    assert run["ceilings"]["fp8_flops"] == 2e14
    printed = capsys.readouterr().out
    assert printed.count("tiny  o          16  32") == 2  # as it is measured, and in the summary
    assert "FAILED no_such: ValueError" in printed
    assert printed.rstrip().endswith("not measured")

    monkeypatch.setattr(layers, "measure", lambda *_: pytest.fail("measured again"))
    layers.run(options)
    content = json.loads(out.read_text())
    assert len(content["rows"]) == 2
    assert len(content["runs"]) == 2


def test_layers_stops_when_the_time_is_spent(capsys, no_ceilings):
    words = "--models tiny --tokens 16 --blocks 32 --budget 0"
    assert layers.run(layers.parser().parse_args(words.split())).rows == []
    assert "no time for 4 rows, from tiny gate_up M=16" in capsys.readouterr().out


def test_the_limit_is_the_slower_of_products_and_bytes():
    assert NO_CEILINGS.limit_us(4e14, 1e12) == pytest.approx(2e6)
    assert NO_CEILINGS.limit_us(2e14, 3e12) == pytest.approx(3e6)


def test_ceilings_are_measured_or_say_why_not(monkeypatch):
    monkeypatch.setitem(ceilings.SIZES, "small", ((8, 32), 32))
    found = ceilings.measure("small")
    assert found.copy_bytes
    assert found.bf16_flops
    assert found.reasons == {}

    def fails(*_args):
        raise RuntimeError("no memory")

    monkeypatch.setattr(ceilings, "copy_timing", fails)
    found = ceilings.measure("small", dots=False)
    assert found.copy_bytes is None
    assert found.reasons["copy"].endswith("no memory")
    assert found.limit_us(1.0, 1.0) is None
    assert "no copy: RuntimeError" in str(found)


def test_transform_quantize_reports_shares_of_the_copy(monkeypatch, capsys, no_ceilings):
    monkeypatch.setattr(transform_quantize, "TRANSFORMS", ("D=32", "hadamard 32"))
    monkeypatch.setattr(transform_quantize, "OUTPUTS", ("e5m2",))
    words = "--shapes 16x64 --implementation xla --cold 0"
    results = transform_quantize.run(transform_quantize.parser().parse_args(words.split()))
    stored, mixed = results.rows
    assert stored["mismatch"] == mixed["mismatch"] == 0
    assert stored["bytes"] == 16 * 64 * 3 + 2 * 64 * 32
    assert mixed["bytes"] == 16 * 64 * 3
    assert stored["share"] == pytest.approx(stored["bytes"] / stored["us"] * 1e6 / 1e12)
    assert "hadamard 32" in capsys.readouterr().out.splitlines()[-1]


def test_transform_quantize_goes_on_after_a_failure():
    options = argparse.Namespace(implementation="no_such", cold=0)
    figures = transform_quantize.measure(16, 64, "mxfp4", "identity", options)
    assert figures["us"] is None
    assert "no_such" in figures["failed"]


def test_roofline_draws_a_small_picture(tmp_path):
    rows = []
    for case in shapes.cases(["llama-3.1-8b"], blocks=(32,)):
        us = {"bf16": case.flops / 8e8 + 5, "ours": case.flops / 1.4e9 + 5}
        moved = {"bf16": case.bytes(16, False), "ours": case.bytes(4.25)}
        row = {"bench": "layers", "run": 0, **vars(case), **roofline._NUMBERS}
        rows.append(row | {"us": us, "bytes": moved, "flops": case.flops})
    run = {"device": "made up", "date": "1970-01-01", "ceilings": NO_CEILINGS.as_json()}
    content = {"runs": [run], "rows": rows}
    assert roofline.points(rows[:1], "ours") == [
        (rows[0]["flops"] / rows[0]["bytes"]["ours"], rows[0]["flops"] / us_of(rows[0]) / 1e6, 4096)
    ]
    picture = roofline.draw(content, tmp_path / "figures" / "roofline.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert 10_000 < picture.stat().st_size < 150_000
    with pytest.raises(ValueError, match="run kernels"):
        roofline.draw(content, picture, block=64)
    run["ceilings"]["copy_bytes"] = None
    with pytest.raises(ValueError, match="no roof"):
        roofline.draw(content, picture)


def us_of(row):
    return row["us"]["ours"]
