"""The decoder layer of the end-to-end benchmark, and the benchmark itself on a tiny one."""

import json

import jax

from kernels.bench import data, end_to_end, shapes
from kernels.bench.decoder import DecoderLayer
from tests.support.distance import frobenius

MICRO = shapes.Architecture(64, 2, 1, 32, 64)  # two pairs of layers of equal size: compiles faster


def test_decoder_layer_decodes_what_it_prefills(others_promote):
    model, params = DecoderLayer(MICRO), end_to_end.float_params(MICRO, jax.random.key(0))
    x = data.tokens(jax.random.key(1), 2 * 12, MICRO.hidden).reshape(2, 12, MICRO.hidden)
    layer = jax.jit(lambda *args: model.apply({"params": params}, *args))
    whole, (k, v) = layer(x)
    last, (new_k, _) = layer(x[:, -1:], 11, (k[:, :-1], v[:, :-1]))
    assert frobenius(last, whole[:, -1:]) < 1e-2  # bf16
    assert frobenius(new_k, k[:, -1:]) < 1e-2
    wrong, _ = layer(x[:, -1:], 11, (k[:, :-1], -v[:, :-1]))
    assert frobenius(wrong, whole[:, -1:]) > 1e-2


def test_end_to_end_compares_layers_of_equal_weights(others_promote, tmp_path, capsys, monkeypatch):
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
