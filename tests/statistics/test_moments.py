"""Second moments and token samples: sums that add, over batches, masks, devices and runs."""

import functools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from wush_jax.statistics import moments
from wush_jax.statistics import observation as statistics
from wush_jax.statistics.moments import Moments
from wush_jax.statistics.observation import Observation
from wush_jax.statistics.running import Statistics
from wush_jax.transforms import blocks

of = jax.jit(moments.of, static_argnums=1)
K, D = 64, 16


def tokens(seed, *shape, dtype=np.float32) -> Any:
    """Activations with a mean and unequal features, as real ones have."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(*shape, K)) * np.exp(rng.normal(size=K)) + 0.5).astype(dtype)


def exact(x, block=K):
    """Blocks of Σ x xᵀ in float64."""
    blocks = np.asarray(x, np.float64).reshape(-1, K // block, block)
    return np.einsum("mcd,mce->cde", blocks, blocks)


def assert_moments(found, x, block, relative=1e-6):
    expected = exact(x, block)
    error = np.linalg.norm(np.asarray(found.total) - expected) / np.linalg.norm(expected)
    assert error <= relative
    assert found.count == np.size(x) // K
    assert (found.total.dtype, found.count.dtype) == (jnp.float32, jnp.uint32)
    assert (found.block, found.features) == (block, K)


@pytest.mark.parametrize("block", [D, K])
def test_streaming_equals_one_shot(block):
    batches = [tokens(seed, 4, 32) for seed in range(3)]
    whole = np.concatenate(batches)
    assert_moments(of(whole, block), whole, block)
    streamed = moments.stream(iter(batches), block)
    assert_moments(streamed, whole, block)
    begun = moments.stream(batches[:1], block)
    resumed = moments.stream(batches[1:], block, start=begun)
    jax.tree.map(np.testing.assert_array_equal, resumed, streamed)
    assert_moments(begun, batches[0], block)  # not modified, nor donated
    first, second = (jnp.asarray(x) for x in batches[:2])
    updated = moments.update(moments.update(moments.zeros(K, block), first), second)
    assert_moments(updated, np.concatenate(batches[:2]), block)


def test_blockwise_is_the_full_moments_diagonal():
    x = tokens(5, 128)
    full = of(x, None).total[0].reshape(K // D, D, K // D, D)
    diagonal = np.einsum("cdce->cde", np.asarray(full))
    np.testing.assert_allclose(of(x, D).total, diagonal, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("dtype", [bool, np.int32, np.float32])
def test_a_masked_token_never_counts(dtype):
    x = tokens(6, 4, 32)
    kept: Any = np.random.default_rng(6).random((4, 32)) < 0.7
    dirty: Any = x.copy()
    dirty[~kept] = np.nan
    found = of(dirty, D, kept.astype(dtype))
    assert_moments(found, x[kept], D)
    pairs: Any = [(dirty[:2], kept[:2]), (dirty[2:], kept[2:])]
    assert_moments(moments.stream(pairs, D), x[kept], D)
    nothing = of(dirty, D, np.zeros_like(kept))
    assert nothing.count == 0
    assert not nothing.total.any()


def test_adding_is_associative():
    a, b, c = (of(tokens(seed, 4, 32), D) for seed in range(3))
    left, right = (a + b) + c, a + (b + c)
    np.testing.assert_allclose(left.total, right.total, rtol=1e-5, atol=1e-3)
    assert left.count == right.count == 3 * 128
    np.testing.assert_array_equal((a + moments.zeros(K, D)).total, a.total)


def test_psum_over_a_mesh_axis():
    if len(jax.devices()) < 8:
        pytest.skip("needs 8 devices; tests/conftest.py makes them on CPU")
    mesh = Mesh(np.array(jax.devices()[:8]), ("data",))
    x = tokens(7, 16, 8)
    mask = np.random.default_rng(7).random((16, 8)) < 0.5

    @functools.partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(PartitionSpec("data"), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )
    def summed(x, mask):
        return jax.lax.psum(moments.of(x, D, mask), "data")

    assert_moments(jax.jit(summed)(x, mask), x[mask], D)


def test_second_moment_is_the_symmetric_mean():
    x = tokens(8, 128)
    found = moments.second_moment(of(x, D))
    np.testing.assert_allclose(found, exact(x, D) / 128, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found, found.mT)
    assert np.isnan(moments.second_moment(moments.zeros(K, D))).all()


def test_bfloat16_accumulates_in_float32_without_a_copy():
    x = jnp.asarray(tokens(9, 512), jnp.bfloat16)
    assert_moments(of(x, D), np.asarray(x, np.float64), D)
    lowered = of.lower(x, D).as_text()
    shapes = re.findall(r"tensor<((?:\d+x)*)f32>", lowered)
    assert shapes
    sizes = {math.prod(int(n) for n in shape.split("x")[:-1]) for shape in shapes}
    assert x.size not in sizes
    assert max(sizes) == K * D  # the result


@pytest.mark.parametrize("block", [0, 24, 128])
def test_blocks_must_divide_the_features(block):
    for call in (
        functools.partial(moments.of, jnp.asarray(tokens(0, 2))),
        functools.partial(moments.zeros, K),
    ):
        with pytest.raises(ValueError, match=f"K=64 .* blocks of D={block}"):
            call(block)


@pytest.mark.usefixtures("unchecked")
def test_wrong_input_is_named():
    with pytest.raises(ValueError, match=r"mask has shape \(4,\); the tokens' shape is \(4, 32\)"):
        moments.of(tokens(0, 4, 32), D, jnp.ones(4, bool))
    with pytest.raises(ValueError, match="no batch"):
        moments.stream([], D)
    with pytest.raises(ValueError, match=r"mlp/up: no token reached"):
        moments.check(moments.zeros(K, D), "mlp/up")
    good = of(tokens(0, 4, 32), D)
    moments.check(good, "mlp/up")
    for bad in (np.nan, np.inf):
        broken = Moments(good.total.at[1, 2, 3].set(bad), good.count)
        with pytest.raises(ValueError, match=r"mlp/up: .* NaN or Inf"):
            moments.check(broken, "mlp/up")
    expert = Moments(jnp.stack([good.total] * 2), jnp.asarray([3, 0], jnp.uint32))
    with pytest.raises(ValueError, match="no token"):
        moments.check(expert, "experts")


def test_weight_moment():
    kernel = jnp.asarray(tokens(10, 48).T)
    expected = exact(kernel.T, D) / 48
    np.testing.assert_allclose(moments.weight_moment(kernel, D), expected, rtol=1e-5, atol=1e-5)


# The sample


def numbered(first, count, offset=0.0):
    """Tokens whose first feature is their own number."""
    x = np.zeros((count, D), np.float32)
    x[:, 0] = np.arange(first, first + count) + offset
    return x


def numbers(seen):
    return np.asarray(seen.rows[..., 0])[np.asarray(seen.valid).reshape(seen.rows.shape[:-1])]


def test_an_observation_counts_all_and_keeps_some():
    look = jax.jit(functools.partial(statistics.observe, block=D, sample=8))
    x = numbered(0, 40)
    seen = look(x, mask=None)
    assert seen.rows.shape == (8, D)
    assert len(set(numbers(seen))) == 8
    assert seen.count.item() == 40
    np.testing.assert_allclose(seen.total[0, 0, 0], (np.arange(40.0) ** 2).sum(), rtol=1e-6)
    mask = np.arange(40) % 10 == 3
    dirty = np.where(mask[:, None], x, np.nan)
    few = look(dirty, mask=mask)  # 4 tokens, 8 places
    assert sorted(numbers(few)) == [3, 13, 23, 33]
    assert few.count.item() == 4
    assert np.isfinite(few.rows).all()
    again = statistics.combine(seen, few)
    assert (again.rows.shape, again.count.item()) == ((8, D), 44)
    np.testing.assert_allclose(again.total, seen.total + few.total)


@pytest.mark.parametrize("per_batch", [4, 16])
def test_the_sample_is_uniform(per_batch):
    """Over 300 keys, each of 64 candidate tokens is kept equally often (chi-squared, 5 sigma)."""
    sample, runs = 8, 300
    batches = 16 if per_batch == 4 else 8
    x = [numbered(i * per_batch, per_batch) for i in range(batches)]
    seen = [statistics.observe(jnp.asarray(b), D, sample, None) for b in x]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *seen)

    @jax.jit
    @jax.vmap
    def draw(key):
        keys = jax.random.split(key, batches)
        each = jax.vmap(Statistics.start)(stacked, keys)
        first = jax.tree.map(lambda leaf: leaf[0], each)
        rest = jax.tree.map(lambda leaf: leaf[1:], each)
        return jax.lax.scan(lambda state, new: (state.merge(new), None), first, rest)[0]

    drawn = draw(jax.random.split(jax.random.key(0), runs))
    assert drawn.rows.shape == (runs, sample, D)
    assert drawn.valid.all()
    assert (drawn.moments.count == batches * per_batch).all()
    kept = drawn.rows[..., 0].astype(int)
    assert all(len(set(row)) == sample for row in np.asarray(kept))
    offered = np.sort(np.asarray(stacked.rows[..., 0])[np.asarray(stacked.valid[..., 0])])
    assert offered.size == 64
    counts = np.bincount(kept.ravel(), minlength=batches * per_batch)[offered.astype(int)]
    assert counts.sum() == runs * sample
    share = sample / 64
    spread = runs * share * (1 - share)
    chi_squared = ((counts - runs * share) ** 2).sum() / spread
    assert chi_squared < 63 + 5 * math.sqrt(2 * 63)


def test_merge_fills_up_before_it_drops():
    few = statistics.observe(jnp.asarray(numbered(0, 3)), D, 8, None)
    more = statistics.observe(jnp.asarray(numbered(100, 4)), D, 8, None)
    first, second = (
        Statistics.start(seen, jax.random.key(i)) for i, seen in enumerate((few, more))
    )
    merged = first.merge(second)
    assert merged.rows.shape == (8, D)
    assert sorted(numbers(merged)) == [0, 1, 2, 100, 101, 102, 103]
    assert merged.moments.count == 7
    swapped = second.merge(first)
    np.testing.assert_array_equal(merged.priority, swapped.priority)
    assert isinstance(few, Observation)


def test_pad_features():
    assert blocks.pad_features(jnp.ones((2, 20)), 16).shape == (2, 32)
    x = jnp.ones((2, 32))
    assert blocks.pad_features(x, 16) is x
