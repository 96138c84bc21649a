"""What evaluation refuses: every refusal says what would fit."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import numpy as np
import pytest

from tests.support.bigrams import CANDIDATES, MODEL, PARAMS, TOKENS, Bigrams
from wush_jax import evaluate


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
