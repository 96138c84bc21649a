"""Inputs for the tests of `transform_quantize`, what is expected, and how it is compared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from tests.support.formats_reference import E2M1, E4M3, nearest
from wush_jax import formats
from wush_jax.formats import elements, scales

FORMATS = ("mxfp4", "mxfp4/ocp", "mxfp4/ceil", "nvfp4", "nvfp4/nvidia")
DTYPES = (jnp.bfloat16, jnp.float16, jnp.float32)
TOKENS = (1, 3, 17, 1000)
BLOCKS = (16, 32, 64, 128)
# Every M with every D; dtypes and formats in turn, so that each meets each M and each D.
CASES = [
    (M, D, DTYPES[(i + j) % 3], FORMATS[(i + 2 * j) % 5])
    for i, M in enumerate(TOKENS)
    for j, D in enumerate(BLOCKS)
]


def random_case(M, K, D, dtype):
    """x with rows of different size, T, and x Tᵀ summed in float64 and rounded to float32."""
    rng = np.random.default_rng(M * K + D)
    x = rng.standard_normal((M, K)) * 2.0 ** (np.arange(M) % 7)[:, None]
    x = np.asarray(jnp.asarray(x, dtype))
    t = np.asarray(jnp.asarray(rng.standard_normal((K // D, D, D)) * D**-0.5, jnp.bfloat16))
    blocks, wide = x.astype(np.float64).reshape(M, -1, D, 1), t.astype(np.float64)
    rotated = (wide @ blocks).reshape(M, K)
    return x, t, rotated.astype(np.float32)


def tie_groups(name):
    """float32 [scales, K]: for many scales, every tie of the grid and the numbers next to it.

    To be quantized with the rule's ratio 1: MXFP4 as it is, NVFP4 with global scale 1.
    """
    fmt = formats.get_format(name)
    if fmt.name == "nvfp4":
        scale = np.asarray(scales.e4m3_decode(jnp.arange(1, 127, dtype=jnp.uint8)), np.float64)
    else:
        scale = np.ldexp(1.0, np.arange(-100, 101, 4)) / (3 if fmt.rule == "wush" else 1)
    magnitudes = np.array(elements.E2M1_MAGNITUDES)
    grid = np.concatenate([magnitudes[:-1], (magnitudes[1:] + magnitudes[:-1]) / 2])
    at = np.outer(scale, grid).astype(np.float32)
    up, down = (np.nextafter(at, np.float32(to)) for to in (np.inf, -np.inf))
    at = np.concatenate([at, up, down, -at, -up, -down], 1)  # [scales, 84]
    largest = 4.5 if fmt.rule == "wush" and fmt.name == "mxfp4" else 6.0
    top = (scale * largest).astype(np.float32)[:, None]
    step = fmt.group_size - 1
    parts = [
        np.concatenate([at[:, i : i + step], top], 1) for i in range(0, at.shape[1] - step, step)
    ]
    x = np.concatenate(parts, 1)
    return x[:, : x.shape[1] // 32 * 32]


def every_exponent():
    """float32 [64, 64]: groups of all exponents or of one, subnormals, the largest, NaN and Inf."""
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 0x7F800000, (64, 64))
    bits[16:32] = rng.integers(0x3C000000, 0x42000000, (16, 64))
    bits[32:48] = (bits[32:48] & 0x7FFFFF) | rng.integers(1, 255, (16, 1)) << 23
    x = (bits | rng.integers(0, 2, bits.shape) << 31).astype(np.uint32).view(np.float32)
    x[48] = 0
    x[49, 3], x[50, 40], x[51, 63] = np.nan, np.inf, -np.inf
    x[52, ::3] = np.finfo(np.float32).max
    return x


_quantize = jax.jit(formats.quantize, static_argnums=1)


def quantized(x, name, global_scale):
    """Codes and scales by `wush_jax.formats` on the CPU, where XLA's arithmetic is IEEE's (for its
    quotients see `exactly_quantized`). Always in one shape, so that a format is compiled once.
    """
    rows = np.zeros((1 << 14, 32), np.float32)
    rows[: x.size // 32] = x.reshape(-1, 32)
    with jax.default_device(jax.devices("cpu")[0]):
        g = None if global_scale is None else jnp.float32(global_scale)
        q = _quantize(jnp.asarray(rows), name, global_scale=g)
        parts = [np.asarray(q.codes), np.asarray(q.scales)]
    return tuple(v[: x.size // 32].reshape(len(x), -1) for v in parts)


def values(x, name, global_scale):
    """float64 element * group scale."""
    codes, stored = quantized(x, name, global_scale)
    codes = np.stack([codes & 15, codes >> 4], -1).reshape(*stored.shape, -1)
    elements = np.where(codes > 7, -1, 1) * E2M1[codes & 7]
    scale = E4M3[stored] if name.startswith("nvfp4") else np.ldexp(1.0, stored.astype(int) - 127)
    return (elements * scale[..., None]).reshape(x.shape)


def exactly_quantized(x, name, global_scale):
    """The same, but NVFP4 with IEEE division: XLA divides by a scale that it broadcasts by way of
    the scale's reciprocal, which moves some ties of the grid. For finite x and ratio 1."""
    if not name.startswith("nvfp4"):
        return quantized(x, name, global_scale)
    groups = x.reshape(len(x), -1, 16)
    stored = nearest(E4M3, np.abs(groups).max(-1) / np.float32(6)).astype(np.uint8)
    units = groups / E4M3[stored].astype(np.float32)[..., None]
    codes = nearest(E2M1, np.minimum(np.abs(units), 6))
    codes = (codes + np.where((units < 0) & (codes > 0), 8, 0)).astype(np.uint8).reshape(x.shape)
    return codes[:, ::2] | codes[:, 1::2] << 4, stored


def assert_same_codes(got, want, exactly=False):
    """(codes, scales): at most 1e-4 differ, and no code by more than a step of its grid."""
    (codes, stored), (want_codes, want_stored) = ([np.asarray(a) for a in v] for v in (got, want))
    assert codes.dtype == stored.dtype == np.uint8
    assert codes.shape == want_codes.shape
    assert stored.shape == want_stored.shape
    if exactly:
        np.testing.assert_array_equal(stored, want_stored)
        np.testing.assert_array_equal(codes, want_codes)
    assert np.mean(stored != want_stored) <= 1e-4
    codes, want_codes = (
        np.stack([v & 15, v >> 4], -1).reshape(len(v), -1) for v in (codes, want_codes)
    )
    assert np.any(want_codes)
    assert np.mean(codes != want_codes) <= 1e-4
    assert not np.any(codes == 8)
    steps, want_steps = (np.where(v > 8, 8 - v.astype(int), v) for v in (codes, want_codes))
    same_scale = np.repeat(stored == want_stored, codes.shape[1] // stored.shape[1], axis=1)
    assert np.abs(steps - want_steps)[same_scale].max() <= 1


def assert_same_values(got, want):
    """At most 1e-4 differ, and those by a step of the grid: a third of a group's largest value."""
    got, want = (np.asarray(v).astype(np.float64) for v in (got, want))
    assert np.any(want)
    different = got != want
    assert np.mean(different) <= 1e-4
    largest = np.repeat(np.abs(want).reshape(len(want), -1, 16).max(-1), 16, axis=1)
    assert np.all((np.abs(got - want) <= 0.7 * largest)[different])
