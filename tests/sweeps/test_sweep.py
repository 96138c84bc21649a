"""Sweeps of a tiny language model."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import wush_jax
from wush_jax import Config, Rule, Score, Sweep, TokenScore, calibrate, grid, quantize, sweep
from wush_jax.layers import trees
from wush_jax.sweeps.rows import SweepRow

KEY = jax.random.key(2)
CONFIG = Config(act_format=None, gauges=1, refine=0, sample_tokens=16)


class Tiny(nn.Module):
    """An embedding, one layer that is quantized, a head that is not."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(29, 32, name="embed")(tokens)
        return nn.Dense(29, name="lm_head")(nn.relu(nn.Dense(32, name="hidden")(x)))


MODEL = Tiny()
TOKENS = np.array(jax.random.randint(KEY, (6, 8, 12), 0, 29))
CALIBRATION, HELD_OUT = TOKENS[:4], TOKENS[4:]
PARAMS: Any = jax.jit(MODEL.init)(KEY, TOKENS[0])["params"]
NAMES = [
    f"{format_name} {transform} {solver}"
    for format_name in ("mxfp4", "nvfp4")
    for transform in ("random", "wush")
    for solver in ("rtn", "gptq")
]


def halves(seed: int) -> Any:
    return CALIBRATION[2 * seed : 2 * seed + 2]


@pytest.fixture(scope="module")
def swept() -> Sweep:
    """Two formats, two transforms, two solvers, each calibrated on two halves of the data."""
    return sweep(
        PARAMS,
        halves,
        grid(transforms=("random", "wush"), base=CONFIG),
        model=MODEL,
        score=TokenScore(iter(HELD_OUT)),
        seeds=2,
    )


def test_every_combination_with_every_seed_has_a_row(swept):
    assert [(row.name, row.seed) for row in swept.rows] == [(n, s) for s in (0, 1) for n in NAMES]
    assert all(row.failed is None for row in swept.rows)
    row = swept.rows[5]
    assert (row.format, row.act_format, row.label) == ("nvfp4/wush", None, "random")
    assert (row.transform, row.block, row.solver, row.scale_search) == ("random", 16, "gptq", False)
    assert swept.metrics() == (
        *("layer_error", "perplexity", "delta_loss", "kl", "top1", "recovery"),
        *("bits", "bytes", "seconds"),
    )


def test_figures_are_those_of_doing_it_by_hand(swept):
    key = jax.random.key(1)
    settings = dataclasses.replace(CONFIG, format="nvfp4", transform="random", solver="gptq")
    calibration = calibrate(PARAMS, halves(1), model=MODEL, key=key, config=settings)
    qparams, report = quantize(PARAMS, calibration, config=settings, key=key, return_report=True)
    (kernel,) = trees.quantized_kernels(qparams).values()
    (row,) = (row for row in swept.rows if (row.name, row.seed) == ("nvfp4 random gptq", 1))
    assert row.metrics["layer_error"] == pytest.approx(report.mean_error())
    assert row.metrics["bytes"] == sum(leaf.nbytes for leaf in jax.tree.leaves(kernel))
    assert row.metrics["bits"] == row.metrics["bytes"] / 128
    found = wush_jax.evaluate(MODEL, PARAMS, qparams, HELD_OUT)["quantized"]
    for figure in ("perplexity", "delta_loss", "kl", "top1", "recovery"):
        assert row.metrics[figure] == pytest.approx(getattr(found, figure)), figure
        assert row.spread[figure] == pytest.approx(getattr(found, f"{figure}_se")), figure
    assert swept.reference["perplexity"] == pytest.approx(found.perplexity * found.recovery / 100)
    assert swept.reference["kl"] == 0


def test_seeds_are_averaged(swept):
    assert [row.name for row in swept.means()] == NAMES
    for mean in swept.means():
        pair = [row.metrics["kl"] for row in swept.rows if row.name == mean.name]
        assert pair[0] != pair[1]
        assert mean.metrics["kl"] == pytest.approx(np.mean(pair))
        assert mean.spread["kl"] == pytest.approx(np.std(pair, ddof=1))
        assert mean.seed is None


def test_evaluations_compare_configurations_over_the_same_sequences(swept):
    assert swept.evaluations is not None
    assert set(swept.evaluations) == {"float", *(f"{n} #{s}" for n in NAMES for s in (0, 1))}
    delta, error = swept.evaluations.difference(f"{NAMES[0]} #0", f"{NAMES[2]} #0")
    assert math.isfinite(delta)
    assert 0 < error < swept.evaluations[f"{NAMES[0]} #0"].loss_se


def test_table_json_and_plot(swept, tmp_path):
    text = str(swept)
    for part in (
        "8 configurations, 2 seeds",
        "random",
        "nvfp4/wush, float",
        "deviation over seeds",
    ):
        assert part in text
    swept.to_json(tmp_path / "sweep.json")
    data = json.loads((tmp_path / "sweep.json").read_text(), parse_constant=pytest.fail)
    assert data == swept.as_dict()
    assert [SweepRow(**row) for row in data["rows"]] == list(swept.rows)
    assert data["best"]["kl"] == min(swept.means(), key=lambda row: row.metrics["kl"]).name
    assert data["best"]["top1"] == max(swept.means(), key=lambda row: row.metrics["top1"]).name
    assert data["evaluations"]["float"]["top1"] == 1
    pytest.importorskip("matplotlib")
    swept.plot(tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_named_configurations_scores_and_failures():
    """A D that does not divide K fails alone, and so does what the score refuses."""
    configs = {
        "plain": dataclasses.replace(CONFIG, transform="hadamard"),
        "wide": dataclasses.replace(CONFIG, transform_block=64),
        "refused": dataclasses.replace(CONFIG, transform="hadamard", format="nvfp4"),
    }
    calibration = calibrate(PARAMS, CALIBRATION, model=MODEL, config=CONFIG)

    def score(qparams):
        (kernel,) = trees.quantized_kernels(qparams).values()
        if kernel.block == 16:
            raise ValueError("not [red]these[/red]")
        return {"accuracy": jnp.float32(0.5)}

    reference = {"accuracy": 0.75}
    found = sweep(PARAMS, calibration, configs, score=Score(score, reference=reference))
    plain, wide, refused = found.rows
    assert (plain.label, plain.failed, plain.metrics["accuracy"]) == ("plain", None, 0.5)
    assert type(plain.metrics["accuracy"]) is float
    assert (wide.metrics, refused.metrics) == ({}, {})
    assert wide.failed is not None
    assert "hidden: K=32 in-features do not split into blocks of 64" in wide.failed
    assert found.evaluations is None
    assert (found.reference, "accuracy" in found.maximize) == (reference, True)
    assert found.best("accuracy") == found.means()[0]
    text = str(found)
    assert "refused failed: not [red]these[/red]" in text
    assert "0.75" in text
    with pytest.raises(ValueError, match="every configuration failed; the first: wide: hidden: K="):
        sweep(PARAMS, calibration, {"wide": configs["wide"]})


def test_a_bare_function_scores_and_no_score_is_the_layers_error():
    calibration = calibrate(PARAMS, CALIBRATION, model=MODEL, config=CONFIG)
    configs = grid(["mxfp4"], ["hadamard"], ["rtn"], base=CONFIG) | {"mine": CONFIG}
    found = sweep(PARAMS, calibration, configs, score=lambda q: {"cosine": 0.25, "loss": 2})
    assert [row.label for row in found.rows] == ["hadamard", "mine"]
    assert found.metrics() == ("layer_error", "cosine", "loss", "bits", "bytes", "seconds")
    assert {row.metrics["cosine"] for row in found.rows} == {0.25}
    assert {"cosine", "loss"} & found.maximize == {"cosine"}
    assert found.reference == {}
    plain = sweep(PARAMS, calibration, configs)
    assert plain.metrics() == ("layer_error", "bits", "bytes", "seconds")
    assert plain.best("layer_error").name == found.best("layer_error").name


def test_rules_that_match_nothing_are_warned_of():
    calibration = calibrate(PARAMS, CALIBRATION, model=MODEL, config=CONFIG)
    config = dataclasses.replace(CONFIG, transform="hadamard", rules=(Rule("no_such", skip=True),))
    with pytest.warns(UserWarning, match="rule 'no_such' matched no layer"):
        sweep(PARAMS, calibration, {"typo": config})


def test_the_sweeps_mask_is_the_scores_unless_it_has_its_own():
    def tokens(mask: Any, own: Any) -> int:
        found = sweep(
            PARAMS,
            CALIBRATION,
            {"plain": dataclasses.replace(CONFIG, transform="hadamard")},
            model=MODEL,
            score=TokenScore(HELD_OUT, mask=own, bootstrap=0),
            mask=mask,
        )
        assert found.evaluations is not None
        return found.evaluations["plain"].tokens

    half, most = (lambda batch, n=n: np.arange(12) < np.full((8, 1), n) for n in (6, 9))
    assert [tokens(*pair) for pair in ((None, None), (half, None), (half, most))] == [176, 80, 128]


GRID = grid(base=CONFIG)
HELD = TokenScore(HELD_OUT)
REFUSED = {
    "no format": ({"configs": grid(formats=[])}, "nothing to sweep: 0 configurations, 1 seeds"),
    "no configuration": ({"configs": {}}, "nothing to sweep: 0 configurations"),
    "no seed": ({"seeds": 0}, "nothing to sweep: 8 configurations, 0 seeds"),
    "no model": ({"model": None, "score": HELD}, "a TokenScore needs the model: pass model="),
    "no batch": ({"score": TokenScore([])}, "at least one batch"),
    "bad batches": ({"score": TokenScore(HELD_OUT, lambda b: b[0])}, "the targets are int"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_come_before_any_work(name):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        sweep(PARAMS, _Untouched(), **{"configs": GRID, "model": MODEL, **options})


class _Untouched:
    """Calibration batches that nothing should read."""

    def __iter__(self):
        raise AssertionError("calibration started")


def test_an_iterator_does_not_serve_several_seeds():
    with pytest.raises(ValueError, match="can be read once, and there are 2 seeds"):
        sweep(PARAMS, iter(CALIBRATION), GRID, model=MODEL, seeds=[KEY, KEY])
