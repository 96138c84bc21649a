"""A small layer, rounded to nearest in every kind of format and transform, and its inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from wush_jax import formats
from wush_jax.config import Config
from wush_jax.fitting.solve import as_kernel
from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import online as ops
from wush_jax.solvers.rtn import rtn
from wush_jax.statistics import moments
from wush_jax.transforms import families

K, N, M, D = 128, 48, 12, 32
CASES = (("mxfp4", "wush"), ("nvfp4", "wush"), ("int4", "identity"), ("mxfp4", "hadamard"))
CASES += (("int8", "diagonal_hadamard"),)

linear = jax.jit(ops.linear)
dequantize = jax.jit(QuantizedKernel.dequantize)


def activations(seed, *shape):
    rng = np.random.default_rng(seed)
    gains = np.exp(np.random.default_rng(0).normal(size=K))  # the same features are large
    return jnp.asarray(rng.normal(size=(*shape, K)) * gains, jnp.float32)


def weights(seed):
    return jnp.asarray(np.random.default_rng([seed, 1]).normal(size=(K, N)) / 8, jnp.float32)


@functools.partial(jax.jit, static_argnames="config")
def fit(w, x, config):
    """T of the moments of x and w."""
    sx = moments.second_moment(moments.of(x, config.block))
    sw = moments.weight_moment(w, config.block)
    return families.make(config.transform, sx, sw, key=jax.random.key(0)).forward


@functools.partial(jax.jit, static_argnames="config")
def solved(w, x, config):
    """The kernel of w, with T fitted to x."""
    act = None
    if config.act_format is not None:
        constant = formats.activation_scale(config.act_format, config.format)
        act = jnp.full((1, 1), constant or 1 / 64, jnp.float32)
    return as_kernel(rtn(w, fit(w, x, config), config), act, w.shape, config)


@functools.cache
def quantized(seed=0, fmt="mxfp4", transform="wush", act="same"):
    """The kernel of `weights` and `activations` of a seed; ``act`` None is weight-only."""
    config = Config(fmt, act, transform, transform_block=D).layer()
    return solved(weights(seed), activations(seed, 256), config)


def assert_relative(found, expected, relative):
    found, expected = (np.asarray(a, np.float64) for a in (found, expected))
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= relative * np.linalg.norm(expected)
