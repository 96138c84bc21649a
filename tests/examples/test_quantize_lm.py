"""The language model example as it is run: table, order, JSON and plot; and its stack of layers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the example keeps its weights as safetensors")
pytest.importorskip("matplotlib", reason="the example plots")

from examples import quantize_lm
from examples.lm import weights
from examples.lm.model import Decoder
from tests.support.tiny_lm import TINY, random_params


def test_the_stack_of_layers_is_the_model():
    model, params = Decoder(TINY), random_params(TINY)
    ids = np.arange(16).reshape(1, 16)
    stack = quantize_lm.stack(model)
    x = stack["embed"](params, ids)
    for name, layer in stack["blocks"].items():
        x = layer.apply({"params": params[name]}, x)
    x = (
        x
        / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-5)
        * params["norm"]["scale"][None, None]
    )
    expected: Any = model.apply({"params": params}, ids)
    np.testing.assert_allclose(x @ params["lm_head"]["kernel"], expected, atol=1e-4)


def test_quantize_lm(tmp_path, capsys):
    """Two rows of a small model: table, order, JSON and plot; and once more from the JSON."""
    path = tmp_path / "tiny.safetensors"
    weights.save(path, TINY, random_params(TINY), {"steps": 0})
    sizes = ["--seeds", "1", "--tokens", "512", "--eval-tokens", "1024", "--batch-size", "16"]
    rows = ["--formats", "mxfp4", "--transforms", "hadamard", "wush", "--solvers", "gptq"]
    first, second = tmp_path / "first", tmp_path / "second"
    options = ["--weights", str(path), *sizes, *rows, "--no-ours", "--dtype", "float32"]
    quantize_lm.main([*options, "--out", str(first)])
    printed = capsys.readouterr().out
    data = json.loads((first / "lm.json").read_text())
    assert [(row["transform"], row["solver"]) for row in data["rows"]] == [
        ("hadamard", "gptq"),
        ("wush", "gptq"),
    ]
    assert data["float"]["tokens"] == 31 * 32
    for row in data["rows"]:
        (delta,), (perplexity,) = row["delta_loss"], row["perplexity"]
        assert np.log(perplexity / data["float"]["perplexity"]) == pytest.approx(delta, abs=1e-6)
        assert row["kl"][0] > 0
    steps = data["order"]
    assert [(step["metric"], step["higher"]) for step in steps] == [
        ("loss", "the paper's best (wush, gptq)"),
        ("loss", "Hadamard GPTQ"),
        ("kl", "Hadamard GPTQ"),
    ]
    assert steps[0]["differences"] == data["rows"][1]["delta_loss"]
    assert (first / "lm.png").read_bytes().startswith(b"\x89PNG")

    quantize_lm.main(["--show", str(first / "lm.json"), "--out", str(second)])
    shown = capsys.readouterr().out
    table = printed[printed.index("┏") : printed.index("the same as JSON")]
    assert table in shown
    assert "a step holds" in table
    again = json.loads((second / "lm.json").read_text())
    assert again["rows"] == data["rows"]

    data["dtype"] = "bfloat16"
    (second / "lm.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="differ in 'dtype'"):
        quantize_lm.joined([first / "lm.json", second / "lm.json"])
