"""Where the arrays of a sequential calibration are: on the device, on the host, or given away."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.smallest_stack import MIX, PAIR, X
from wush_jax.quantization.sequential import offload
from wush_jax.quantization.sequential.blocks import quantize_blocks


def test_donated_host_and_resident_params_give_the_same():
    resident = jax.tree.map(jnp.copy, PAIR)
    q = quantize_blocks(resident, X, **MIX, donate=True)
    assert all(kernel.is_deleted() for kernel in jax.tree.leaves(resident))
    host = quantize_blocks(jax.tree.map(np.asarray, PAIR), X, **MIX, offload=False)
    jax.tree.map(np.testing.assert_array_equal, q, host)


@pytest.mark.parametrize("offloaded", [True, False])
def test_embedded_batches_leave_the_device(offloaded):
    """Counts the device arrays of an unmistakable shape, at each batch."""
    alive = []

    def mask(batch):
        alive.append(sum(array.shape == (7, 16, 32) for array in jax.live_arrays()))
        return jnp.ones((7, 16))

    stack = {**MIX, "embed": lambda params, batch: batch + jnp.arange(7 * 32.0).reshape(7, 1, 32)}
    quantize_blocks(
        PAIR, np.ones((4, 1, 16, 32), np.float32), **stack, mask=mask, offload=offloaded
    )
    assert alive[-1] - alive[0] == (0 if offloaded else 3)


def test_host_arrays_are_numpy_and_go_back_to_their_place():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    there = jax.device_put(jnp.arange(8.0).reshape(4, 2), split)
    x = jnp.ones((2, 3), jnp.bfloat16)
    host = offload.to_host((x, {"there": there, "none": None}))
    assert type(host[0].array) is np.ndarray
    assert host[0].array.dtype == jnp.bfloat16

    store = offload.Activations()
    store.append((x, {"there": there, "none": None}))
    store[0] = (x + 1, {"there": there, "none": None})
    ((back, rest),) = store
    assert back.dtype == jnp.bfloat16
    np.testing.assert_array_equal(back, x + 1)
    np.testing.assert_array_equal(rest["there"], there)
    assert rest["there"].sharding == split
    assert rest["none"] is None
