"""Perplexity, KL and top-1 agreement against float64, and the errors and refusals around them."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import wush_jax
from wush_jax import Config, Evaluations, evaluate
from wush_jax.evaluation.evaluate import _compare
from wush_jax.evaluation.result import Sums, summarize

KEY = jax.random.key(11)
VOCABULARY, PAD = 23, 0


class Bigrams(nn.Module):
    """Next-token logits from the current token alone; ``answer`` is what it returns."""

    answer: str = "logits"

    @nn.compact
    def __call__(self, tokens, shift=None):
        x = nn.Embed(VOCABULARY, 32, name="embed")(tokens)
        x = x if shift is None else x + shift[..., None]
        hidden = nn.relu(nn.Dense(32, name="hidden")(x))
        logits = nn.Dense(VOCABULARY, name="lm_head")(hidden)
        return {"logits": logits, "pair": (logits, hidden), "pooled": logits.mean(1)}[self.answer]


MODEL = Bigrams()
TOKENS = np.array(jax.random.randint(KEY, (2, 16, 9), 1, VOCABULARY))
MASK = np.array(jax.random.bernoulli(KEY, 0.8, TOKENS.shape))
PARAMS: Any = jax.tree.map(
    lambda w: 2 * np.asarray(w), jax.jit(MODEL.init)(KEY, TOKENS[0])["params"]
)


def perturbed(size: float, seed: int = 0) -> Any:
    """Params with noise of ``size`` on every leaf."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda w: w + np.float32(size * rng.normal(size=w.shape)), PARAMS)


def reference(params: Any, tokens: Any, counts: Any, targets: Any) -> dict[str, float]:
    """All figures in float64, token by token, from the models' float32 logits."""
    logits, base = (np.asarray(LOGITS(p, tokens), np.float64) for p in (params, PARAMS))
    nll, base_nll, kl, top1 = [], [], [], []
    for index in zip(*np.nonzero(counts), strict=True):
        logq, logp = (x[index] - np.log(np.exp(x[index]).sum()) for x in (logits, base))
        nll.append(-logq[targets[index]])
        base_nll.append(-logp[targets[index]])
        kl.append(np.sum(np.exp(logp) * (logp - logq)))
        top1.append(logq.argmax() == logp.argmax())
    loss, delta = float(np.mean(nll)), float(np.mean(nll) - np.mean(base_nll))
    return {
        "tokens": len(nll),
        "loss": loss,
        "perplexity": math.exp(loss),
        "delta_loss": delta,
        "kl": float(np.mean(kl)),
        "top1": float(np.mean(top1)),
        "recovery": 100 * math.exp(-delta),
    }


LOGITS = jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens))
CANDIDATES = {"near": perturbed(0.02), "nearer": perturbed(0.02, seed=1), "far": perturbed(0.2)}


@pytest.fixture(scope="module")
def found() -> Evaluations:
    return evaluate(MODEL, PARAMS, CANDIDATES, TOKENS)


def assert_figures(row: wush_jax.Evaluation, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert getattr(row, name) == pytest.approx(value, rel=2e-5, abs=1e-6), name


def same_figures(some: Evaluations, others: Evaluations) -> None:
    assert list(some) == list(others)
    for name in some:
        for field, value in dataclasses.asdict(some[name]).items():
            assert getattr(others[name], field) == pytest.approx(value, rel=1e-5, abs=1e-7), field


@pytest.mark.parametrize("name", [*CANDIDATES, "float"])
def test_figures_are_those_of_float64(found, name):
    flat = TOKENS.reshape(-1, 9)
    counts = np.ones(flat.shape, bool)
    counts[:, -1] = False
    params = CANDIDATES.get(name, PARAMS)
    assert_figures(found[name], reference(params, flat, counts, np.roll(flat, -1, 1)))
    assert found[name].sequences == 32
    assert found["far"].kl > 10 * found["near"].kl > 0  # the cases differ
    assert found["far"].top1 < found["near"].top1 < 1


def test_identical_params_lose_nothing():
    row = evaluate(MODEL, PARAMS, jax.tree.map(np.copy, PARAMS), TOKENS)["quantized"]
    assert (row.kl, row.kl_se, row.delta_loss, row.delta_loss_se) == (0, 0, 0, 0)
    assert (row.top1, row.top1_se, row.recovery, row.recovery_se) == (1, 0, 100, 0)
    assert row.perplexity_se > 0


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (2, 8), elements=st.floats(-30, 30, width=32)),
    st.sampled_from([1e-3, 0.1, 3.0]),
)
def test_kl_is_accurate_however_small(logits, size):
    """Where the sum over p log(p/q) as it stands would drown in float32's rounding."""
    noise = np.linspace(-1, 1, 8) ** 3
    pair = [logits, (logits + size * noise).astype(np.float32)]
    logp, logq = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in np.array(pair, np.float64))
    exact = np.sum(np.exp(logp) * (logp - logq))
    one = jnp.zeros((1, 2), jnp.int32)
    (kl,) = np.asarray(_compare(*(jnp.asarray(x)[None] for x in pair), one, one == 0).kl)
    assert kl == pytest.approx(exact, rel=5e-3, abs=1e-9)


def test_a_position_counts_where_its_token_and_the_next_do():
    pairs = [{"tokens": t, "kept": m} for t, m in zip(TOKENS, MASK, strict=True)]
    batches = [{"tokens": b["tokens"]} for b in pairs]
    masks = {id(b): p["kept"] for b, p in zip(batches, pairs, strict=True)}
    row = evaluate(MODEL, PARAMS, CANDIDATES, batches, mask=lambda b: masks[id(b)])["far"]
    flat, kept = TOKENS.reshape(-1, 9), MASK.reshape(-1, 9)
    counts = kept & np.roll(kept, -1, 1)
    counts[:, -1] = False
    assert_figures(row, reference(CANDIDATES["far"], flat, counts, np.roll(flat, -1, 1)))


def test_padding_reaches_nothing():
    """Not even where it gives NaN; a sequence of padding alone is none."""
    padded = np.pad(TOKENS[0], ((0, 1), (0, 2)), constant_values=PAD)
    poisoned = jax.tree.map(np.copy, PARAMS)
    poisoned["embed"]["embedding"][PAD] = np.nan
    candidates = {"far": CANDIDATES["far"]}
    clean = evaluate(MODEL, PARAMS, candidates, TOKENS[:1])
    same_figures(clean, evaluate(MODEL, poisoned, candidates, [padded], mask=lambda b: b != PAD))
    with pytest.raises(
        ValueError, match=r"float: NaN or Inf in the logits of 26 tokens of batch 0"
    ):
        evaluate(MODEL, poisoned, candidates, [padded])
    batches = [TOKENS[0, :, :4], np.pad(TOKENS[0, :, :1], ((0, 0), (0, 3)))]
    with pytest.raises(ValueError, match=r"bad: NaN or Inf in the logits of 32 tokens of batch 1"):
        evaluate(MODEL, PARAMS, {"bad": poisoned}, batches)


def test_targets_of_one_s_own():
    targets = TOKENS[::-1].copy()
    batches, places = list(TOKENS), iter(range(2))
    row = evaluate(
        MODEL,
        PARAMS,
        CANDIDATES,
        batches,
        targets=lambda batch: targets[next(places)],
        mask=lambda batch: batch % 2,
    )["near"]
    flat = TOKENS.reshape(-1, 9)
    expected = reference(CANDIDATES["near"], flat, flat % 2 == 1, targets.reshape(-1, 9))
    assert_figures(row, expected)


def test_batches_in_every_form():
    one = {"near": CANDIDATES["near"]}
    plain = evaluate(MODEL, PARAMS, one, list(TOKENS))
    shift = np.zeros(TOKENS.shape, np.float32)
    as_tuple = zip(TOKENS, shift, strict=True)
    as_mapping = [{"shift": s, "tokens": t} for t, s in zip(TOKENS, shift, strict=True)]
    same_figures(plain, evaluate(MODEL, PARAMS, one, as_tuple))
    same_figures(plain, evaluate(MODEL, {"params": PARAMS}, one, as_mapping))
    same_figures(plain, evaluate(Bigrams("pair"), PARAMS, one, iter(TOKENS)))


def test_the_size_of_batches_does_not_matter(found):
    same_figures(found, evaluate(MODEL, PARAMS, CANDIDATES, TOKENS.reshape(8, 4, 9)))


def test_quantized_candidates_in_every_form():
    config = Config(transform="identity", gauges=1, sample_tokens=32)
    qparams = wush_jax.quantize(PARAMS, TOKENS, model=MODEL, config=config)
    found = evaluate(
        MODEL, PARAMS, {"bare": qparams, "whole": {"params": qparams}, "float copy": PARAMS}, TOKENS
    )
    assert found["bare"] == found["whole"]
    assert evaluate(MODEL, PARAMS, qparams, TOKENS)["quantized"] == found["bare"]
    assert found["bare"].kl > 1e-4
    assert found["float copy"].kl == 0

    flat = TOKENS.reshape(-1, 9)
    logits = jax.jit(functools.partial(wush_jax.apply, MODEL))
    both = [np.asarray(logits(p, flat), np.float64)[:, :-1] for p in (PARAMS, qparams)]
    logp, logq = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in both)
    by_hand = np.mean(np.sum(np.exp(logp) * (logp - logq), -1))
    assert found["bare"].kl == pytest.approx(by_hand, rel=1e-3)


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


def _refused(*, model: nn.Module = MODEL, candidates: Any = CANDIDATES, batches: Any = TOKENS, **k):
    return lambda: evaluate(model, PARAMS, candidates, batches, **k)


REFUSED = {
    "no batch": (_refused(batches=[]), "at least one batch"),
    "float's name": (_refused(candidates={"float": PARAMS}), "a candidate is named 'float'"),
    "another model's": (
        _refused(candidates={"other": {"dense": PARAMS["hidden"]}}),
        r"'other' holds \['dense'\]; params of this model hold \['embed', 'hidden', 'lm_head'\]",
    ),
    "no tree": (_refused(candidates={"none": None}), "candidate 'none' holds NoneType"),
    "no logits": (
        _refused(model=Bigrams("pooled")),
        r"logits \[B, T, V\].*Bigrams returned float32 \(16, 23\)",
    ),
    "no tokens": (
        lambda: evaluate(
            nn.Dense(23, use_bias=False), {"kernel": np.ones((9, 23))}, {}, [np.ones((2, 4, 9))]
        ),
        r"the batch holds float64 \(2, 4, 9\) but no integers \[B, T\]",
    ),
    "mask of another shape": (
        _refused(mask=lambda b: b[:, 1:]),
        r"the mask has shape \(16, 8\); the tokens' shape is \(16, 9\)",
    ),
    "targets of another shape": (
        _refused(targets=lambda b: b[:, 1:]),
        r"the targets are int32 \(16, 8\); logits \(16, 9, 23\) take integers \(16, 9\)",
    ),
    "float targets": (_refused(targets=lambda b: b + 0.5), "the targets are float64"),
    "targets outside": (
        _refused(targets=lambda b: b - 5),
        r"targets run from -4 to 17; .* a vocabulary of 23",
    ),
    "all masked": (_refused(mask=lambda b: b < 0), "leaves no token to predict"),
    "sequences of one token": (_refused(batches=TOKENS[:, :, :1]), "leaves no token to predict"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_say_what_would_fit(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


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
