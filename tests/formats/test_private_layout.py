"""The private weight layout: exactly reversible, and what the kernels' shifts make of its words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wush_jax.formats import private_layout as layout
from wush_kernels import words_ptx

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def random_weights(seed, *lead, N=32, K=256, G=32):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (*lead, N, K // 2), dtype=np.uint8)
    scales = rng.integers(0, 256, (*lead, N, K // G), dtype=np.uint8)
    return jnp.asarray(codes), jnp.asarray(scales)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([16, 32]), st.sampled_from([(), (3,), (2, 1)]))
def test_round_trip(seed, G, lead):
    codes, scales = random_weights(seed, *lead, G=G)
    private = layout.to_private(codes, scales)
    back = layout.to_public(*private)
    np.testing.assert_array_equal(back[0], codes)
    np.testing.assert_array_equal(back[1], scales)
    assert (private[0] != codes).any()
    assert [x.shape for x in private] == [codes.shape, scales.shape]
    at = (0,) * len(lead)
    first = layout.to_private(codes[at], scales[at])
    np.testing.assert_array_equal(private[0][at], first[0])


def test_where_a_lane_finds_its_weights():
    """Piece [b, t, h, g, j] of the codes, and [b, t, g, h] of the scales, is row 16 b + 8 h + g."""
    codes, scales = random_weights(1, N=48, K=384)
    _, groups = layout.to_private(codes, scales)
    groups = groups.reshape(3, 3, 8, 2, 4)
    b, t, h, g, j = 2, 1, 1, 5, 3
    row, byte = 16 * b + 8 * h + g, 64 * t + 16 * j
    np.testing.assert_array_equal(groups[b, t, g, h], scales[row, 4 * t : 4 * t + 4])
    marked = jnp.zeros_like(codes).at[row, byte : byte + 16].set(255)
    pieces = layout.to_private(marked, scales)[0].reshape(3, 3, 2, 8, 4, 16)
    assert pieces[b, t, h, g, j].all()
    assert jnp.count_nonzero(pieces) == 16


def decoded(word, order):
    """float16 pairs that the kernels' shifts and masks make of a word, as (low, high) values."""
    pairs = []
    for magnitude, sign in order:

        def shifted(by):
            return (int(word) << by if by >= 0 else int(word) >> -by) & 0xFFFFFFFF

        bits = shifted(magnitude) & words_ptx.MAGNITUDE | shifted(sign) & words_ptx.SIGN
        pairs.append(np.array([bits], np.uint32).view(np.float16).astype(np.float64) * 2.0**14)
    return pairs


@pytest.mark.parametrize("code", range(16))
@pytest.mark.parametrize("place", range(8))
def test_shifts_decode_every_code_at_every_place(code, place):
    word = np.zeros(8, np.uint32)
    word[place] = code
    public = np.uint32((word << (4 * np.arange(8, dtype=np.uint32))).sum())
    value = E2M1[code & 7] * (-1 if code & 8 else 1)
    expected = np.zeros(8)
    expected[place] = value
    low_high = np.array(decoded(public, words_ptx.PUBLIC))  # pair i: codes i and i + 4
    np.testing.assert_array_equal(np.concatenate([low_high[:, 0], low_high[:, 1]]), expected)
    private = np.asarray(layout._word_to_private(jnp.asarray(public)))
    low_high = np.array(decoded(private, words_ptx.PRIVATE))  # pair i: codes 2 i and 2 i + 1
    np.testing.assert_array_equal(low_high.reshape(-1), expected)


@pytest.mark.parametrize("shape", [(8, 64), (16, 32)])
def test_shapes_without_a_private_layout(shape):
    codes = jnp.zeros(shape, jnp.uint8)
    with pytest.raises(ValueError, match=f"N={shape[0]}"):
        layout.to_private(codes, jnp.zeros((shape[0], shape[1] // 16), jnp.uint8))
    assert not layout.fits(shape[0], 2 * shape[1])


def test_under_jit():
    codes, scales = random_weights(2)
    jitted = jax.jit(lambda c, s: layout.to_public(*layout.to_private(c, s)))(codes, scales)
    np.testing.assert_array_equal(jitted[0], codes)
