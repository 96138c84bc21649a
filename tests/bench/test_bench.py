"""The benchmarks' own logic, on a CPU and tiny sizes: what they time, record and print."""

import argparse
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels.bench import (
    ceilings,
    data,
    end_to_end,
    layers,
    programs,
    qwix_baseline,
    roofline,
    shapes,
    targets,
    timing,
    transform_quantize,
)
from kernels.bench.decoder import DecoderLayer

TINY = shapes.MODELS["tiny"]
MICRO = shapes.Architecture(64, 2, 1, 32, 64)  # two pairs of layers of equal size: compiles faster
NO_CEILINGS = ceilings.Ceilings(1e12, 2e12, 1e14, 2e14, {})


@pytest.fixture
def no_ceilings(monkeypatch):
    monkeypatch.setattr(ceilings, "measure", lambda *args, **kwargs: NO_CEILINGS)


run = jax.jit(programs.linear)


def frobenius(a, b):
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# ---- timing --------------------------------------------------------------------------------------


def test_rotation_takes_its_copies_in_turn():
    call = timing.Rotation(lambda x: x + 1, [(jnp.float32(i),) for i in range(3)])
    assert [int(call()) for _ in range(5)] == [1, 2, 3, 1, 2]
    assert isinstance(call, jax.stages.Wrapped)  # so that CUPTI's wrapper does not jit it again


def test_cupti_times_are_summed_over_kernels_and_the_median_taken(monkeypatch):
    from jax.experimental.mosaic.gpu import profiler

    def fake(f, *, aggregate, iterations):
        assert isinstance(f, jax.stages.Wrapped)
        assert not aggregate
        assert iterations == 3
        spans = [(1.0, 0.5), (9.0, 0.5), (2.0, 0.25)]  # milliseconds
        return lambda: (None, [[("gemm", a), ("quantize", b)] for a, b in spans])

    monkeypatch.setattr(timing, "timer", lambda: "cupti")
    monkeypatch.setattr(profiler, "measure", fake)
    measured = timing.measure(lambda x: x, jnp.ones(2), iterations=3)
    assert measured == timing.Timing(2250.0, "cupti", (("gemm", 2000.0), ("quantize", 500.0)))
    monkeypatch.setattr(profiler, "measure", lambda *_, **__: lambda: (None, None))
    with pytest.raises(RuntimeError, match="CUPTI saw no kernel"):
        timing.measure(lambda x: x, jnp.ones(2))


def test_a_failure_becomes_a_reason_and_wall_time_stands_in_for_a_gpu():
    def fails():
        raise ValueError("no such\nshape")

    result, reason = timing.attempt(fails)
    assert result is None
    assert reason is not None
    assert reason.startswith("ValueError at test_bench.py:")
    assert reason.endswith(": no such shape")
    measured, reason = timing.attempt(lambda: timing.measure(jnp.sin, jnp.ones(8), iterations=2))
    assert reason is None
    assert measured is not None
    assert measured.timer == "wall"
    assert measured.us > 0


def test_budget_begins_no_row_that_could_not_end():
    now = [0.0]
    budget = timing.Budget(100, clock=lambda: now[0])
    with budget.row():
        now[0] = 40.0
    assert budget.allows()
    with budget.row():
        now[0] = 61.0
    assert not budget.allows()


# ---- shapes and targets --------------------------------------------------------------------------


def test_shapes_are_those_of_the_models():
    llama = shapes.MODELS["llama-3.1-8b"].layers()
    assert llama == {
        "gate_up": (4096, 28672),
        "down": (14336, 4096),
        "qkv": (4096, 6144),
        "o": (4096, 4096),
    }
    assert shapes.MODELS["qwen3-8b"].layers() == llama | {
        "gate_up": (4096, 24576),
        "down": (12288, 4096),
    }


def test_cases_come_by_importance_and_count_what_must_move():
    rows = list(shapes.cases(["llama-3.1-8b", "qwen3-8b"]))
    assert [str(row) for row in rows[:3]] == [
        "llama-3.1-8b gate_up M=4096 K=4096 N=28672 D=32",
        "llama-3.1-8b gate_up M=4096 K=4096 N=28672 D=128",
        "llama-3.1-8b down M=4096 K=14336 N=4096 D=32",
    ]
    assert len({row.M for row in rows}) == 8
    wide = {(row.layer, row.M) for row in rows if row.D == 128}
    assert wide == {(name, M) for name in ("gate_up", "down") for M in (1024, 4096, 16384)}
    case = shapes.Case("m", "l", 2, 64, 32, 16)
    assert case.flops == 2 * 2 * 64 * 32
    assert case.bytes(4.25) == 2 * 2 * (64 + 32) + 64 * 32 * 4.25 / 8 + 2 * 64 * 16
    with pytest.raises(ValueError, match="unknown model 'bert'; there are llama"):
        list(shapes.cases(["bert"]))
    with pytest.raises(ValueError, match="unknown layer 'up'; there are gate_up"):
        list(shapes.cases(["tiny"], layers=["up"]))


def test_the_limit_is_the_slower_of_products_and_bytes():
    assert NO_CEILINGS.limit_us(4e14, 1e12) == pytest.approx(2e6)
    assert NO_CEILINGS.limit_us(2e14, 3e12) == pytest.approx(3e6)


def test_verdicts_take_the_worst_row_of_a_regime():
    def row(M, ours, N=4096, K=14336, D=32):
        us = {"bf16": 100.0, "ours": ours, "block_scaled": 500.0}
        return {"layer": "down", "M": M, "N": N, "K": K, "D": D, "run": 0, "us": us}

    lines = targets.verdicts([row(4096, 50.0), row(16384, 60.0), row(16, 40.0), row(64, 80.0)])
    assert "1.67x (down, M=16384) to 2.00x, 2 rows" in lines[0]
    assert lines[0].endswith(": must")
    assert lines[1].endswith("not measured")
    assert "2.50x (down, M=16)" in lines[2]
    assert lines[3].endswith(": MISSED")
    assert lines[4].endswith(": stretch")
    assert lines[5].endswith("not measured")
    assert targets.verdicts([row(16, 40.0, N=4095)])[2].endswith("not measured")
    for wide, verdict in ((53.5, "must"), (54.5, "MISSED")):
        line = targets.verdicts([row(4096, 50.0), row(4096, wide, D=128)])[5]
        assert f"{wide / 50:.3f}, 1 rows" in line
        assert line.endswith(verdict)


# ---- data ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def layer():
    return programs.Layer(256, 96, 64)


def test_synthetic_kernels_are_layers_like_any_other(layer):
    kernel = layer.kernel
    assert (kernel.features, kernel.outputs, kernel.block) == (256, 96, 64)
    assert kernel.transform is not None
    t = np.asarray(kernel.transform, np.float64)
    gram = t @ t.swapaxes(1, 2)
    sizes = np.sqrt(np.diagonal(gram, axis1=1, axis2=2))
    assert 0.7 < sizes.min() < 0.8 < 1.3 < sizes.max() < 1.42  # up to half an octave
    cosines = gram / (sizes[:, :, None] * sizes[:, None, :])
    assert np.abs(cosines - np.eye(64)).max() < 2e-2
    assert len(np.unique(t[:, 0], axis=0)) == 4  # every block has its own
    assert len(np.unique(np.asarray(kernel.codes))) > 200
    x = layer.inputs(64)
    y = np.asarray(run(x, kernel), np.float64)
    dense = jax.jit(lambda kernel: kernel.dequantize())(kernel)
    assert 0.02 < frobenius(y, np.asarray(x, float) @ np.asarray(dense, float)) < 0.2
    part, stride = data.some_outputs(kernel, 40)
    assert stride == 3
    assert frobenius(run(x, part), y[:, ::3]) < 1e-6


def test_copies_are_as_many_as_are_cold_and_lie_elsewhere():
    tree = {"w": jnp.ones((64, 4), jnp.bfloat16)}  # 512 bytes
    made = data.copies(tree, 1500)
    assert len(made) == 3
    assert len({leaf["w"].unsafe_buffer_pointer() for leaf in made}) == 3
    assert len(data.copies(tree, 0)) == 1
    assert data.nbytes(jax.ShapeDtypeStruct((8, 4), jnp.float4_e2m1fn)) == 16


@pytest.mark.parametrize("M", [1, 100])
def test_the_error_sees_wrong_outputs_rows_and_nan(layer, M):
    x = layer.inputs(M)
    y = np.array(run(x, layer.kernel))
    assert layer.error(x, y) == 0
    assert layer.error(x, np.roll(y, 1, axis=1)) > 0.5
    assert M == 1 or layer.error(x, np.roll(y, 1, axis=0)) > 0.5
    y[-1, 0] = np.nan
    assert np.isnan(layer.error(x, y))
    assert layer.weight_bits() == 4.25


def test_qwix_is_the_same_product_or_says_what_to_install():
    x, w = (data.tokens(jax.random.key(i), n, 128) for i, n in ((0, 16), (1, 24)))
    if importlib.util.find_spec("qwix") is None:
        with pytest.raises(NotImplementedError, match="pip install qwix"):
            qwix_baseline.quantize(w)
        return
    weights = qwix_baseline.quantize(w)
    y = qwix_baseline.linear(x, weights)
    assert y.dtype == jnp.bfloat16
    assert 0.02 < frobenius(y, x.astype(jnp.float32) @ w.astype(jnp.float32).T) < 0.3
    assert frobenius(qwix_baseline.linear_dequantized(x, weights), y) < 5e-3


# ---- whole benchmarks ----------------------------------------------------------------------------


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


def test_decoder_layer_decodes_what_it_prefills():
    model, params = DecoderLayer(MICRO), end_to_end.float_params(MICRO, jax.random.key(0))
    x = data.tokens(jax.random.key(1), 2 * 12, MICRO.hidden).reshape(2, 12, MICRO.hidden)
    layer = jax.jit(lambda *args: model.apply({"params": params}, *args))
    whole, (k, v) = layer(x)
    last, (new_k, _) = layer(x[:, -1:], 11, (k[:, :-1], v[:, :-1]))
    assert frobenius(last, whole[:, -1:]) < 1e-2  # bf16
    assert frobenius(new_k, k[:, -1:]) < 1e-2
    wrong, _ = layer(x[:, -1:], 11, (k[:, :-1], -v[:, :-1]))
    assert frobenius(wrong, whole[:, -1:]) > 1e-2


def test_end_to_end_compares_layers_of_equal_weights(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(shapes.MODELS, "tiny", MICRO)
    out = tmp_path / "e.json"
    words = "--model tiny --prefill= --decode 2 --cache 8 --act-format none --cold 0 --budget 60"
    options = end_to_end.parser().parse_args([*words.split(), "--out", str(out)])
    results = end_to_end.run(options)
    (row,) = json.loads(out.read_text())["rows"]
    assert row["failed"] == {}
    assert row["difference"] < 2e-2  # weight-only: but for bf16 they are the same function
    assert row["bf16"]["us"] > 0
    assert row["quantized"]["wall_us"] > 0
    assert results.run["cache"] == 8
    assert "decode      2" in capsys.readouterr().out


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
