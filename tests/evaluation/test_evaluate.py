"""Perplexity, KL and top-1 agreement against float64, in every form of batches and params."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import wush_jax
from tests.support.bigrams import CANDIDATES, MASK, MODEL, PAD, PARAMS, TOKENS, Bigrams, reference
from wush_jax import Config, Evaluations, evaluate
from wush_jax.evaluation.evaluate import _compare


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
