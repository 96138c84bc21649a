"""A model of bigrams, candidates by noise on its params, and their figures in float64."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import numpy as np

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
