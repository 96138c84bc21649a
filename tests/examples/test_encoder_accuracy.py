"""The figures of the encoder's accuracy table, on synthetic errors of layers."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("safetensors", reason="the example model reads safetensors")
pytest.importorskip("tokenizers", reason="the example model needs tokenizers")

import wush_jax
from examples import encoder_accuracy as example

LAYERS = [
    f"layer_{i}/{name}"
    for i in range(6)
    for name in ("attention/query", "attention/output", "mlp/up", "mlp/down")
]


def row(method: tuple[str, str], error: float, odd: float = 1.0) -> dict[str, Any]:
    """Layers of one error, but for the first on comments."""
    docs = dict.fromkeys(LAYERS, error)
    comments = {**docs, LAYERS[0]: odd * error}
    names = dict(zip(("transform", "solver"), method, strict=True))
    return {"format": "mxfp4", **names, "layers": {"docstrings": docs, "comments": comments}}


def test_figures_are_relative_to_the_paper_and_to_hadamard_by_the_same_solver():
    ours = ("wush-128", "gptq + search, ours")
    rows = [
        row(example.HADAMARD["rtn"], 0.04),
        row(example.HADAMARD["published"], 0.03),
        row(example.HADAMARD["ours"], 0.025),
        row(example.PAPER, 0.02),
        row(ours, 0.015, odd=3.0),
        row(("wush", "rtn, published"), 0.03),
    ]
    found = example.figures(rows[4], rows)
    assert found["some"] == found["all"] == pytest.approx(0.015)
    assert found["/ paper"] == pytest.approx(0.75)
    assert found["worst"] == pytest.approx(0.6)
    assert found["worst, comments"] == pytest.approx(1.8)
    assert found["comments"] == pytest.approx(0.015 * 3 ** (1 / len(LAYERS)))
    assert example.figures(rows[3], rows)["worst"] == pytest.approx(2 / 3)
    assert example.figures(rows[5], rows)["worst"] == pytest.approx(0.75)


def test_methods_are_what_they_are_called():
    configs = {m: wush_jax.Config(**settings) for m, settings in example.METHODS.items()}
    for (transform, solver), config in configs.items():
        name, _, block = transform.partition("-")
        assert config.transform == name
        assert config.transform_block == (int(block) if block else None)
        assert config.solver == solver[:4].rstrip(",").strip()
        assert config.scale_search == ("search" in solver)
        if config.solver == "gptq":
            assert (config.objective == "W") == (config.refine == 0) == ("published" in solver)
    assert configs[example.PAPER].gauges == 1
