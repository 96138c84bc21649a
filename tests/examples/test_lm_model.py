"""The language model of the examples, and the file that its weights are kept in."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the example keeps its weights as safetensors")

from examples.lm import recipes, weights
from examples.lm.model import Decoder, LmConfig, rotate
from tests.support.tiny_lm import TINY, random_params, shapes


class TestModel:
    def test_causal(self):
        config = dataclasses.replace(TINY, kv_heads=2)
        ids = np.random.default_rng(0).integers(0, 256, (1, 24))
        changed = ids.copy()
        changed[0, 13] ^= 1
        logits: Any = Decoder(config).apply(
            {"params": random_params(config)}, np.concatenate([ids, changed])
        )
        difference = np.abs(np.asarray(logits[0] - logits[1])).max(-1)
        assert logits.shape == (2, 24, 256)
        assert logits.dtype == jnp.float32
        assert (difference[:13] == 0).all()
        assert (difference[13:] > 1e-4).all()

    def test_rotary_scores_depend_on_the_distance_alone(self):
        rng = np.random.default_rng(1)
        q, k = (np.tile(rng.normal(size=(1, 1, 1, 16)), (1, 40, 1, 1)) for _ in range(2))
        q, k = (rotate(jnp.asarray(x, jnp.float32), 100.0)[0, :, 0] for x in (q, k))
        scores = np.asarray(jnp.matmul(q, k.T, precision="highest"))
        for distance in range(-39, 40):
            assert np.ptp(np.diagonal(scores, distance)) < 1e-4
        assert np.ptp(scores[:, 0]) > 0.1  # but on that it does depend
        np.testing.assert_allclose(scores[0, 0], scores[7, 7], rtol=1e-5)

    def test_rotary_angles_are_float32_whatever_the_dtype(self):
        x = jnp.ones((1, 600, 1, 8), jnp.bfloat16)
        turned = rotate(x, 10_000.0)
        assert turned.dtype == jnp.bfloat16
        expected = rotate(x.astype(jnp.float32), 10_000.0)
        np.testing.assert_allclose(turned.astype(jnp.float32), expected, atol=8e-3)

    def test_grouped_queries(self):
        config = LmConfig(hidden_size=256, mlp_size=384, layers=2, heads=8, kv_heads=2, context=32)
        kernels = shapes(config)["layer_1"]["attention"]
        found = {name: kernels[name]["kernel"].shape for name in kernels}
        assert found == {
            "query": (256, 256),
            "key": (256, 64),
            "value": (256, 64),
            "output": (256, 256),
        }

    @pytest.mark.parametrize(
        "wrong", [{"hidden_size": 192}, {"mlp_size": 100}, {"heads": 3}, {"kv_heads": 3}]
    )
    def test_sizes_that_do_not_fit(self, wrong):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            dataclasses.replace(TINY, **wrong)

    def test_sizes_of_the_recipes(self):
        """As documented; the small one's weights must stay below 8 MB."""
        counts = {
            name: sum(leaf.size for leaf in jax.tree.leaves(shapes(recipe.model)))
            for name, recipe in recipes.RECIPES.items()
        }
        assert counts["cpu"] == pytest.approx(0.85e6, rel=0.01)
        assert 2 * counts["small"] < 7.95e6
        assert counts["gpu"] == pytest.approx(38.3e6, rel=0.01)


class TestWeights:
    def test_round_trip(self, others_promote, tmp_path):
        path, params = tmp_path / "new" / "w.safetensors", random_params(TINY)
        weights.save(path, TINY, params, {"steps": 3})
        model, loaded, facts = weights.load(path, jnp.bfloat16)
        assert (model.config, model.dtype, facts) == (TINY, jnp.bfloat16, {"steps": 3})
        expected = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), params)
        jax.tree.map(np.testing.assert_array_equal, loaded, expected)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(loaded))
        assert path.stat().st_size < 2.1 * sum(leaf.size for leaf in jax.tree.leaves(params))

    def test_files_that_are_something_else(self, tmp_path):
        path = tmp_path / "w.safetensors"
        weights.save(path, TINY, random_params(TINY), {})
        data = path.read_bytes()
        for wrong in (b"", b"no weights at all", data[:-1], data.replace(b"heads", b"hands", 1)):
            path.write_bytes(wrong)
            with pytest.raises(ValueError, match=r"w\.safetensors is no file of weights"):
                weights.load(path)

    def test_tensors_of_another_config(self, tmp_path):
        path = tmp_path / "w.safetensors"
        weights.save(path, dataclasses.replace(TINY, mlp_size=256), random_params(TINY), {})
        with pytest.raises(ValueError, match=r"mlp/down/kernel is \(128, 128\).*\(256, 128\)"):
            weights.load(path)
