"""The language model example: model, text, training, weights, and what its table says."""

from __future__ import annotations

import dataclasses
import itertools
import json
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("safetensors", reason="the example keeps its weights as safetensors")
pytest.importorskip("matplotlib", reason="the example plots")

import wush_jax
from examples import quantize_lm
from examples.lm import order, recipes, results, text, weights
from examples.lm import train as training
from examples.lm.grid import OURS, SEARCH, grid
from examples.lm.model import Decoder, LmConfig, rotate
from examples.lm.recipes import Recipe
from examples.stdlib import sources

SPLITS = ("training", "calibration", "evaluation")
# All kernels but the head's are 128 x 128, so that they share what is compiled.
TINY = LmConfig(hidden_size=128, mlp_size=128, layers=1, heads=4, kv_heads=4, context=32)
RECIPE = Recipe(TINY, batch_size=8, steps=20, learning_rate=1e-2, warmup=5, chunk=10)
CORPUS = np.frombuffer(b"def f(x):\n    return x + 1\n\n" * 50, np.uint8)


def shapes(config: LmConfig) -> Any:
    window = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    return jax.eval_shape(Decoder(config).init, jax.random.key(0), window)["params"]


def random_params(config: LmConfig, seed: int = 0) -> Any:
    """Values that bfloat16 cannot hold, of the sizes of `config`."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: (rng.normal(size=leaf.shape) / np.sqrt(leaf.shape[0])).astype(np.float32),
        shapes(config),
    )


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


class TestText:
    def test_splits_share_no_module(self):
        modules = {split: {m for m in sources() if text.split_of(m) == split} for split in SPLITS}
        assert sum(map(len, modules.values())) == len(sources())
        tops = [{m.split(".")[0] for m in modules[split]} for split in SPLITS]
        assert len(set.union(*tops)) == sum(map(len, tops))
        sizes = [len(text.corpus(split)) for split in SPLITS]
        assert sizes[0] > 4 * max(sizes[1:])
        assert min(sizes) > 400_000

    def test_corpus_is_whole_files(self):
        module = next(m for m in sources() if text.split_of(m) == "evaluation")
        files = text.corpus("evaluation").tobytes().split(text.END)
        assert sources()[module].read_bytes() in files

    def test_evaluation_windows_do_not_overlap(self, monkeypatch):
        monkeypatch.setattr(text, "corpus", lambda split: np.arange(250, dtype=np.uint8))
        batches = text.evaluation_batches(225, 10, 4)
        assert [batch.shape for batch in batches] == [(4, 10)] * 6
        assert batches[0].dtype == np.int32
        seen = np.concatenate(batches).ravel()
        assert len(set(seen)) == len(seen)
        assert (seen[0], seen[-1]) == (0, 249)
        with pytest.raises(ValueError, match="250 bytes"):
            text.evaluation_batches(250, 10, 4)

    def test_random_windows_reach_both_ends(self):
        windows = text.random_windows(jnp.arange(12, dtype=jnp.uint8), jax.random.key(0), 64, 8)
        assert (windows[:, 1:] - windows[:, :-1] == 1).all()
        assert (windows.min(), windows.max()) == (0, 11)

    def test_calibration_windows_depend_on_the_seed(self):
        first, again, other = (text.calibration_batches(600, 32, 8, s) for s in (0, 0, 1))
        assert [batch.shape for batch in first] == [(8, 32)] * 3
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, other)


class TestTraining:
    def test_learns_and_is_reproducible(self):
        runs = []
        for _ in range(2):
            found = list(training.train(RECIPE, CORPUS, seed=3))
            runs.append(([(s.step, s.progress) for s in found], [s.loss for s in found], found[-1]))
        assert runs[0][:2] == runs[1][:2]
        positions, losses, last = runs[0]
        assert positions == [(10, 0.5), (20, 1.0)]
        assert losses[0] < np.log(256)  # a mean over its steps, from about there
        assert losses[1] < losses[0] - 1
        same = jax.tree.map(lambda a, b: bool((a == b).all()), last.params, runs[1][2].params)
        assert all(jax.tree.leaves(same))
        held_out = training.held_out_loss(
            Decoder(TINY), last.params, [np.asarray(CORPUS[:66], np.int32).reshape(2, 33)]
        )
        assert held_out < losses[1]

    def schedule(self, monkeypatch, seconds_a_chunk, **options):
        """(step, start, end) of each chunk, by a clock that stands still but in chunks."""
        calls, clock = [], SimpleNamespace(now=0.0)
        monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: clock.now))

        def run(state, _text, _key, step, start, end):
            clock.now += seconds_a_chunk
            calls.append((step, start, end))
            return state, 0.0

        compiled = SimpleNamespace(lower=lambda *_: SimpleNamespace(compile=lambda: run))
        monkeypatch.setattr(training, "_chunk", lambda *_: compiled)
        steps = [snapshot.step for snapshot in training.train(RECIPE, CORPUS, **options)]
        assert steps == [10 * (i + 1) for i in range(len(calls))]
        for (_, _, end), (_, start, _) in itertools.pairwise(calls):
            assert start == end
        assert calls[0][1] == 0.0
        assert calls[-1][2] == 1.0
        return calls

    def test_steps_are_made_up_to_whole_chunks(self, monkeypatch):
        calls = self.schedule(monkeypatch, 1.0, steps=25)
        assert [round(end, 3) for *_, end in calls] == [0.4, 0.8, 1.0]

    def test_time_ends_it_before_the_steps_do(self, monkeypatch):
        calls = self.schedule(monkeypatch, 9.0, steps=10_000, minutes=1.0)
        assert len(calls) == 6  # 54 s: a seventh would have been too late
        assert calls[-2][2] == pytest.approx(45 / 60)

    def test_steps_end_it_before_the_time_does(self, monkeypatch):
        assert len(self.schedule(monkeypatch, 9.0, steps=30, minutes=1.0)) == 3

    def test_learning_rate(self):
        rates = [
            float(training.learning_rate(RECIPE, jnp.asarray(step), jnp.asarray(progress)))
            for step, progress in ((0, 0.0), (4, 0.0), (500, 0.5), (1000, 1.0))
        ]
        np.testing.assert_allclose(rates, [2e-3, 1e-2, 0.51e-2, 2e-4], rtol=1e-5)


class TestWeights:
    def test_round_trip(self, tmp_path):
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


class TestGrid:
    def test_rows(self):
        rows = grid()
        assert len(rows) == 3 * (5 * 2 + 4)
        assert len({row.name for row in rows}) == len(rows)
        configs = {row.name: row.config for row in rows}
        paper = configs["mxfp4 wush gptq"]
        assert (paper.objective, paper.refine, paper.gauges) == ("W", 0, 1)
        assert not paper.scale_search
        hadamard = configs["nvfp4 hadamard gptq"]
        assert (hadamard.objective, hadamard.refine) == ("W", 0)
        wide = configs["int4 wush-128 gptq"]
        assert (wide.transform_block, wide.gauges, wide.refine) == (128, 16, 0)
        ours = wush_jax.Config(format="mxfp4", solver="gptq")
        assert configs[f"mxfp4 wush {OURS}"] == ours
        best = dataclasses.replace(ours, transform_block=128, scale_search=True)
        assert configs[f"mxfp4 wush-128 {SEARCH}"] == best
        assert [row.name for row in rows if row.sequential] == [
            f"{fmt} wush-128 {SEARCH}, sequential" for fmt in ("mxfp4", "nvfp4", "int4")
        ]

    def test_chosen_rows(self):
        rows = grid(["int4"], ["hadamard", "wush@0.5"], ["rtn"], ours=False, auto=True)
        assert [(row.transform, row.solver) for row in rows] == [
            ("hadamard", "rtn"),
            ("wush@0.5", "rtn"),
            ("auto", SEARCH),
        ]
        assert rows[1].config.strength == 0.5
        for wrong in (["fp3"], ["wush"], ["rtn"]), (["int4"], ["wash"], ["rtn"]):
            with pytest.raises(ValueError, match=r"fp3|wash"):
                grid(*wrong)
        with pytest.raises(ValueError, match="best"):
            grid(["int4"], ["wush"], ["best"])


def result(name: str, delta: list[float]) -> results.Result:
    format, transform, solver = name.split(" ", 2)
    ones, kl = [1.0] * len(delta), [10 * d for d in delta]
    return results.Result(format, transform, solver, ones, delta, ones, kl, ones, ones)


DELTA = {
    "mxfp4 hadamard rtn": [0.30, 0.30, 0.30],
    "mxfp4 hadamard gptq": [0.20, 0.23, 0.20],
    "mxfp4 wush gptq": [0.21, 0.21, 0.21],
    f"mxfp4 wush {OURS}": [0.27, 0.27, 0.27],
    f"mxfp4 wush-128 {OURS}": [0.24, 0.27, 0.24],
}


class TestOrder:
    def compare(self, delta, error=0.01):
        losses = {"float": [0.0] * 3, **delta}

        def difference(a, b, seed, metric):
            scale = {"loss": 1, "kl": 10}[metric]
            return scale * (losses[a][seed] - losses[b][seed]), scale * error

        return order.compare([result(name, d) for name, d in delta.items()], difference)

    def test_each_step_with_its_error(self):
        everything = self.compare(DELTA)
        found = [c for c in everything if c.metric == "loss"]
        assert [c.lower for c in found] == [
            "float model",
            f"best of ours (wush-128, {OURS})",
            "the paper's best (wush, gptq)",
            "Hadamard GPTQ",
        ]
        assert [c.verdict for c in found] == ["holds", "reversed", "not told apart", "holds"]
        np.testing.assert_allclose(
            [c.difference for c in found], [0.25, -0.04, 0, 0.09], atol=1e-12
        )
        # text: 0.01, alike for all seeds; calibration: a deviation of 0.03 / sqrt(3), and 3 seeds
        np.testing.assert_allclose([c.error for c in found], np.hypot(0.01, 0.01))
        by_kl = [c for c in everything if c.metric == "kl"]
        assert [(c.lower, c.verdict) for c in by_kl] == [(c.lower, c.verdict) for c in found[1:]]
        np.testing.assert_allclose([c.difference for c in by_kl], [-0.4, 0, 0.9], atol=1e-12)

    def test_statement_says_what_holds(self):
        said = order.statement(self.compare(DELTA))
        assert "mxfp4, loss: 2 of 4 steps of the order hold" in said
        assert "mxfp4, kl: 1 of 3 steps of the order hold" in said
        assert "Hadamard GPTQ < Hadamard RTN: +0.09000 ± 0.01414 nats, 6.4 errors: holds" in said
        assert "3 calibration seeds" in said
        assert "on this very text" in said

    def test_what_is_not_known_is_not_claimed(self):
        found = self.compare(DELTA, error=float("nan"))  # a single sequence
        assert {c.verdict for c in found} == {"not told apart"}
        assert self.compare({f"mxfp4 wush {SEARCH}": [0.1] * 3})[0].lower == "float model"
        assert self.compare({"mxfp4 identity rtn": [0.1] * 3}) == []
        assert order.statement([]) == ""

    def test_from_dict(self):
        for comparison in self.compare(DELTA):
            data = json.loads(json.dumps(comparison.as_dict()))
            assert data["verdict"] == comparison.verdict
            assert order.from_dict(data) == comparison


def test_the_stack_of_layers_is_the_model():
    model, params = Decoder(TINY), random_params(TINY)
    ids = np.arange(16).reshape(1, 16)
    stack = quantize_lm.stack(model)
    x = stack["embed"](params, ids)
    for name, layer in stack["blocks"].items():
        x = layer.apply({"params": params[name]}, x)
    x = x / np.sqrt(np.mean(np.square(x), -1, keepdims=True) + 1e-5) * params["norm"]["scale"]
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
