"""The text that the language model of the examples is trained on, and its training."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.lm import text
from examples.lm import train as training
from examples.lm.model import Decoder
from examples.lm.recipes import Recipe
from examples.stdlib import sources
from tests.support.tiny_lm import TINY

SPLITS = ("training", "calibration", "evaluation")
RECIPE = Recipe(TINY, batch_size=8, steps=20, learning_rate=1e-2, warmup=5, chunk=10)
CORPUS = np.frombuffer(b"def f(x):\n    return x + 1\n\n" * 50, np.uint8)


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
    def test_learns_and_is_reproducible(self, others_promote):
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
