"""What an evaluation says of its figures: errors, differences, table, JSON and plot."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

import wush_jax
from tests.support.bigrams import CANDIDATES, KEY, MODEL, PARAMS, TOKENS
from wush_jax import evaluate
from wush_jax.evaluation.result import summarize
from wush_jax.evaluation.rows import Sums


def test_differences_are_paired(found):
    for metric in ("loss", "perplexity", "kl", "top1"):
        delta, error = found.difference("near", "nearer", metric)
        a, b = (found[name] for name in ("near", "nearer"))
        assert delta == pytest.approx(getattr(a, metric) - getattr(b, metric))
        if metric in ("loss", "perplexity"):
            unpaired = math.hypot(getattr(a, f"{metric}_se"), getattr(b, f"{metric}_se"))
            assert 0 < error < 0.2 * unpaired
    assert found.difference("far", "float") == (found["far"].delta_loss, found["far"].delta_loss_se)
    assert found["near"].delta_loss_se < 0.2 * found["near"].loss_se


def test_errors_are_the_analytic_ones(found):
    sums = found.sums["far"]
    for metric, values in {"loss": sums.nll, "kl": sums.kl, "top1": sums.top1}.items():
        expected = np.std(values / sums.tokens) / np.sqrt(32)
        assert getattr(found["far"], f"{metric}_se") == pytest.approx(expected, rel=0.1)
    row = found["far"]
    assert row.perplexity_se == pytest.approx(row.perplexity * row.loss_se, rel=0.1)
    assert row.recovery_se == pytest.approx(row.recovery * row.delta_loss_se, rel=0.1)


def test_the_key_decides_the_resamples(found):
    fields = ("loss", "loss_se")
    same, other = (
        evaluate(MODEL, PARAMS, CANDIDATES, TOKENS, key=jax.random.key(i))["far"] for i in (0, 1)
    )
    assert same == found["far"]
    assert [getattr(same, f) == getattr(other, f) for f in fields] == [True, False]


def test_a_single_sequence_or_no_bootstrap_has_no_error(tmp_path):
    for tokens, count in ((TOKENS[:1, :1], 50), (TOKENS[:1], 0)):
        found = evaluate(MODEL, PARAMS, CANDIDATES["far"], tokens, bootstrap=count)
        row = found["quantized"]
        assert all(np.isnan(v) for f, v in dataclasses.asdict(row).items() if f.endswith("_se"))
        assert np.isfinite(row.kl)
        assert "±" not in str(found.table().columns[1]._cells)
        found.plot(tmp_path / "one.png")
        assert found.as_dict()["quantized"]["kl_se"] is None


def test_a_perplexity_beyond_float64_is_infinite_and_null_in_json(tmp_path):
    one, many = np.ones(3), np.array([900.0, 950.0, 1000.0])
    sums = {"float": Sums(one, one, 0 * one, one), "lost": Sums(one, many, many, 0 * one)}
    found = summarize({**sums, "won": Sums(one, -many, many, one)}, 10, KEY)
    assert found["lost"].perplexity == math.inf
    assert np.isnan(found["lost"].perplexity_se)
    assert found["lost"].recovery == 0
    assert found["won"].recovery == math.inf
    assert "inf" in str(found)
    assert np.isnan(found.difference("lost", "lost", "perplexity")[0])
    found.to_json(tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text())["lost"]["perplexity"] is None


def test_table_json_and_plot(found, tmp_path):
    text = str(found)
    assert "256 tokens in 32 sequences" in text
    assert f"{100 * found['far'].top1:.1f} ± {100 * found['far'].top1_se:.1f} %" in text
    assert "1000 bootstrap resamples" in text
    bold = [cell for cell in found.table().columns[3]._cells if "[bold]" in str(cell)]
    assert len(bold) == 1  # the least KL, float's not counted
    assert f"{min(found[n].kl for n in CANDIDATES):.5f}" in str(bold[0])

    found.to_json(tmp_path / "found.json")
    data = json.loads((tmp_path / "found.json").read_text(), parse_constant=pytest.fail)
    assert {n: wush_jax.Evaluation(**row) for n, row in data.items()} == dict(found)

    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "plots" / "found.png")
    assert (tmp_path / "plots" / "found.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert [p.name for p in (tmp_path / "plots").iterdir()] == ["found.png"]


def test_names_are_shown_as_they_are():
    found = evaluate(MODEL, PARAMS, {"[bold]wush[/]": PARAMS}, TOKENS[:1], bootstrap=0)
    assert "[bold]wush[/]" in str(found)


def test_difference_refuses_unknown_names(found):
    with pytest.raises(ValueError, match="no candidate 'nope'; there are float, near"):
        found.difference("near", "nope")
    with pytest.raises(ValueError, match="unknown metric 'recovery'; there are loss, perp"):
        found.difference("near", "far", "recovery")


def test_an_evaluation_of_nothing_else_has_no_plot(tmp_path):
    found = evaluate(MODEL, PARAMS, {}, TOKENS[:1], bootstrap=0)
    assert list(found) == ["float"]
    assert "perplexity" in str(found)
    with pytest.raises(ValueError, match="nothing to plot"):
        found.plot(tmp_path / "none.png")
