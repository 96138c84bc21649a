"""Hadamard matrices are Sylvester's."""

import numpy as np
import pytest

from tests.support.random_moments import SIZES
from wush_jax.transforms import hadamard


@pytest.mark.parametrize("block", [1, 2, *SIZES, 256])
def test_hadamard_is_sylvesters(block):
    expected = np.ones((1, 1))
    while len(expected) < block:
        expected = np.kron([[1, 1], [1, -1]], expected)
    signs = hadamard.signs(block)
    np.testing.assert_array_equal(signs, expected)
    np.testing.assert_array_equal(signs, signs.T)
    assert signs.dtype == np.int8
    h = hadamard.matrix(block)
    assert h.dtype == np.float32
    np.testing.assert_allclose(h @ h, np.eye(block), atol=1e-6)


@pytest.mark.parametrize("block", [0, 3, 12, 20, 96])
def test_hadamard_refuses_other_orders(block):
    with pytest.raises(ValueError, match=f"D={block} is not a power of two"):
        hadamard.signs(block)
