"""The public API of formats: shapes, dtypes, transformations, gradients, identities, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support import formats_reference as reference
from wush_jax import formats
from wush_jax.formats import Format, get_format

ALL = reference.ALL


@pytest.fixture(autouse=True)
def _strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def normal(shape=(8, 256), seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32).astype(dtype)


def bits(x):
    return np.asarray(x).view({2: np.uint16, 4: np.uint32}[x.dtype.itemsize])


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("mxfp4", ("mxfp4/wush", 32, 4, True, jnp.uint8, np.float32(1 / 3), 4.25, True)),
        ("mxfp4/ocp", ("mxfp4/ocp", 32, 4, True, jnp.uint8, 1, 4.25, True)),
        ("mxfp4/ceil", ("mxfp4/ceil", 32, 4, True, jnp.uint8, 1, 4.25, True)),
        ("nvfp4", ("nvfp4/wush", 16, 4, True, jnp.uint8, np.float32(0.1), 4.5, True)),
        ("nvfp4/nvidia", ("nvfp4/nvidia", 16, 4, True, jnp.uint8, None, 4.5, True)),
        ("int4", ("int4/wush", 32, 4, True, jnp.bfloat16, 1, 4.5, False)),
        ("int4/absmax", ("int4/absmax", 32, 4, True, jnp.bfloat16, 1, 4.5, False)),
        ("int8", ("int8/absmax", 32, 8, False, jnp.bfloat16, 1, 8.5, False)),
    ],
)
def test_table(spec, expected):
    f = get_format(spec)
    found = (str(f), f.group_size, f.element_bits, f.packed, f.scale_dtype, f.global_scale)
    assert (*found, f.bits_per_value, f.exact_in_bf16) == expected
    assert get_format(f) is f
    assert get_format(str(f)) == f
    assert hash(get_format(str(f))) == hash(f)


@pytest.mark.parametrize("spec", ["fp4", "mxfp4/nvidia", "int8/wush", "", "mxfp4/", "mxfp4/wush/x"])
def test_unknown_format(spec):
    with pytest.raises(ValueError, match=r"unknown format.*mxfp4/wush.*nvfp4/nvidia.*int8/absmax"):
        get_format(spec)
    with pytest.raises(ValueError, match="unknown format"):
        Format(spec, "none")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("spec", ALL)
def test_bad_input(spec):
    size = get_format(spec).group_size
    operations = (formats.quantize, formats.fake_quantize, formats.quantized_values)
    for operation in operations:
        with pytest.raises(ValueError, match=f"G = {size}.*K is 40.*K = 32 or {40 - 40 % -size}"):
            operation(jnp.ones((2, 40)), spec)
        with pytest.raises(ValueError, match="divisible"):
            operation(jnp.float32(1), spec)
        with pytest.raises(ValueError, match="not int32"):
            operation(jnp.ones((2, 64), jnp.int32), spec)
        for shape in ((64,), (2, 64), (1, 1, 1)):
            with pytest.raises(ValueError, match="a global scale is"):
                operation(jnp.ones((2, 64)), spec, global_scale=jnp.ones(shape))
    with pytest.raises(ValueError, match="not int32"):
        formats.data_global_scale(jnp.ones(4, jnp.int32), spec)


@pytest.mark.usefixtures("unchecked")
def test_pack_rejects():
    with pytest.raises(ValueError, match="even K"):
        formats.pack(jnp.zeros((2, 3), jnp.uint8))
    with pytest.raises(ValueError, match="int8"):
        formats.pack(jnp.zeros((2, 4), jnp.int8))
    with pytest.raises(ValueError, match="int32"):
        formats.unpack(jnp.zeros((2, 4), jnp.int32))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 15), min_size=1, max_size=16), st.integers(1, 3))
def test_pack_round_trip(half, rows):
    codes = jnp.asarray([half + half[::-1]] * rows, jnp.uint8)
    packed = formats.pack(codes)
    expected = np.asarray(codes)[:, 0::2] + 16 * np.asarray(codes)[:, 1::2]
    np.testing.assert_array_equal(packed, expected)
    np.testing.assert_array_equal(formats.unpack(packed), codes)


@pytest.mark.parametrize("spec", ALL)
@pytest.mark.parametrize("shape", [(64,), (3, 64), (2, 0, 64), (2, 3, 32), (4, 0)])
def test_shapes_and_dtypes(spec, shape):
    f = get_format(spec)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    q = jax.eval_shape(lambda x: formats.quantize(x, spec), x)
    lead, k = shape[:-1], shape[-1]
    assert q.codes.shape == (*lead, k // 2 if f.packed else k)
    assert q.codes.dtype == (jnp.uint8 if f.packed else jnp.int8)
    assert q.scales.shape == (*lead, k // f.group_size)
    assert q.scales.dtype == f.scale_dtype
    assert (q.global_scale.shape, q.global_scale.dtype) == ((), jnp.float32)
    for dtype in (jnp.float32, jnp.bfloat16):
        back = jax.eval_shape(lambda q, dtype=dtype: formats.dequantize(q, dtype), q)
        assert (back.shape, back.dtype) == (shape, dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("spec", ALL)
def test_fake_quantize_is_dequantize_of_quantize(spec, dtype):
    x = normal(dtype=dtype) * jnp.exp2(jnp.arange(-4.0, 4.0))[:, None].astype(dtype)
    x = x.at[3, 32:64].set(0).at[5, 7].set(jnp.nan)
    q, fake = reference.quantize(x, spec), reference.fake_quantize(x, spec)
    assert fake.dtype == dtype
    np.testing.assert_array_equal(bits(fake), bits(reference.dequantize(q, dtype)))
    np.testing.assert_array_equal(bits(fake), bits(reference.dequantize(q).astype(dtype)))
    values, g = reference.quantized_values(x, spec)
    np.testing.assert_array_equal(bits((values * g).astype(dtype)), bits(fake))
    scales = reference.scales_to_values(q.scales, spec)
    scales = np.repeat(np.asarray(scales), get_format(spec).group_size, -1)
    np.testing.assert_array_equal(reference.codes_to_values(q.codes, spec) * scales, values)
    if get_format(spec).exact_in_bf16:
        np.testing.assert_array_equal(values.astype(jnp.bfloat16).astype(jnp.float32), values)


@pytest.mark.parametrize("spec", ALL)
def test_vmap_is_a_loop(spec):
    x, g = normal((3, 4, 64)), jnp.float32(0.01)

    def one(x):
        q = formats.quantize(x, spec, global_scale=g)
        return q, formats.fake_quantize(x, spec), formats.dequantize(q, jnp.bfloat16)

    mapped, alone = jax.jit(jax.vmap(one))(x), jax.jit(one)
    for i in range(3):
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[i], b), mapped, alone(x[i]))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spec", ALL)
def test_gradient_passes_straight_through(spec, dtype):
    x, w = normal((2, 64), dtype=dtype), normal((2, 64), 1, dtype)

    @jax.jit
    def derivatives(x, w, g):
        default = jax.grad(lambda x: jnp.sum(formats.fake_quantize(x, spec) * w))(x)
        given = jax.grad(
            lambda x, g: jnp.sum(formats.fake_quantize(x, spec, global_scale=g) * w), (0, 1)
        )(x, g)
        _, tangent = jax.jvp(lambda x: formats.fake_quantize(x, spec), (x,), (w,))
        none = jax.grad(lambda x: jnp.sum(formats.quantized_values(x, spec)[0]))(x)
        return (default, given[0], tangent), (given[1], none)

    ones, zeros = derivatives(x, w, jnp.float32(0.2))
    for straight in ones:
        np.testing.assert_array_equal(bits(straight), bits(w))
    assert not any(np.asarray(zero, np.float32).any() for zero in zeros)


@pytest.mark.parametrize("spec", ALL)
def test_sign_symmetry(spec):
    x = normal(seed=2)
    np.testing.assert_array_equal(
        reference.fake_quantize(-x, spec), -reference.fake_quantize(x, spec)
    )


@pytest.mark.parametrize("spec", ["mxfp4/ocp", "mxfp4/ceil", "nvfp4", "int4/absmax", "int8"])
def test_idempotent(spec):
    once = reference.fake_quantize(normal(seed=3), spec)
    np.testing.assert_array_equal(reference.fake_quantize(once, spec), once)


@pytest.mark.parametrize("power", [-90, -20, -1, 1, 13, 90])
@pytest.mark.parametrize("spec", [s for s in ALL if s not in ("nvfp4/wush",)])
def test_equivariant_under_powers_of_two(spec, power):
    x, factor = normal(seed=4), jnp.float32(2.0**power)
    scaled = reference.fake_quantize(x * factor, spec)
    np.testing.assert_array_equal(scaled, reference.fake_quantize(x, spec) * factor)


@pytest.mark.parametrize(
    ("spec", "worst", "gaussian"),
    [
        ("mxfp4/wush", 0.2, 0.119),
        ("mxfp4/ocp", 0.25, 0.116),
        ("mxfp4/ceil", 0.2, 0.116),
        ("nvfp4/wush", 0.18, 0.096),
        ("nvfp4/nvidia", 0.18, 0.096),
        ("int4/wush", 0.56, 0.103),
        ("int4/absmax", 0.5 / 7 * 1.01, 0.098),
        ("int8/absmax", 0.5 / 127 * 1.01, 0.0055),
    ],
)
def test_error_bounds(spec, worst, gaussian):
    """Worst error over the group's amax, and root mean square error on N(0, 1)."""
    x = normal((512, 512), seed=5)
    error = jnp.abs(reference.fake_quantize(x, spec) - x).reshape(-1, get_format(spec).group_size)
    amax = jnp.abs(x).reshape(error.shape).max(-1, keepdims=True)
    assert float((error / amax).max()) <= worst
    rms = float(jnp.sqrt(jnp.mean(error**2)))
    assert gaussian * 0.97 <= rms <= gaussian


@pytest.mark.parametrize("spec", ALL)
def test_format_is_static(spec):
    traces = []

    @jax.jit
    def f(q):
        traces.append(q.format)
        return formats.dequantize(q)

    for seed in range(3):
        f(reference.quantize(normal(seed=seed), spec))
    assert traces == [get_format(spec)]
    leaves = jax.tree.leaves(reference.quantize(normal(), spec))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)
    assert len(leaves) == 3
