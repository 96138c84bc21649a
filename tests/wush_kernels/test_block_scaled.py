"""The product of packed 4-bit arrays: in XLA, in Triton's interpreter, on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import triton_interpreter
from tests.support.formats_reference import E2M1, E4M3
from wush_kernels.quantized_matmul import block_scaled
from wush_kernels.quantized_matmul.block_scaled import BlockScaledConfig, block_scaled_matmul

FORMATS = ("mxfp4", "nvfp4")
SHAPES = [(1, 8, 32), (3, 24, 64), (17, 40, 160), (130, 136, 288), (1000, 64, 96)]


def side(n, K, name, seed):
    """Random codes and scales as uint8, and float64 values; a zero group and extreme codes too."""
    rng = np.random.default_rng(seed)
    G = 32 if name == "mxfp4" else 16
    codes = rng.integers(0, 256, (n, K // 2)).astype(np.uint8)
    exponents = rng.integers(-12, 5, (n, K // G))
    stored = exponents + 127 if name == "mxfp4" else rng.integers(0, 127, (n, K // G))
    stored[0, 1:2] = 0
    stored = stored.astype(np.uint8)
    scale = np.ldexp(1.0, stored.astype(int) - 127) if name == "mxfp4" else E4M3[stored]
    nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(n, K // G, G)
    values = np.where(nibbles > 7, -1, 1) * E2M1[nibbles & 7] * scale[..., None]
    return codes, stored, values.reshape(n, K)


class BlockScaled:
    """What every implementation must do."""

    implementation = "triton"
    formats = FORMATS
    tolerance = (2e-3, 1e-6)  # relative Frobenius error: bfloat16, float32 sums

    def product(self, *arrays, **options):
        options["implementation"] = self.implementation
        run = jax.jit(lambda *v: block_scaled_matmul(*v, **options))
        return np.asarray(run(*map(jnp.asarray, arrays)))

    def pytest_generate_tests(self, metafunc):
        if "name" in metafunc.fixturenames:
            metafunc.parametrize("name", self.formats)

    @pytest.mark.parametrize(("M", "N", "K"), SHAPES)
    def test_product(self, M, N, K, name):
        a, a_scales, a_values = side(M, K, name, 1)
        b, b_scales, b_values = side(N, K, name, 2)
        factor = np.array([0.125 / 3], np.float32)
        want = a_values @ b_values.T * np.float64(factor[0])
        dtype = jnp.bfloat16 if M == 17 else jnp.float32
        y = self.product(a, a_scales, b, b_scales, factor, format=name, dtype=dtype)
        assert y.dtype == dtype
        assert y.shape == (M, N)
        tolerance = self.tolerance[dtype == jnp.float32]
        assert np.linalg.norm(y.astype(np.float64) - want) <= tolerance * np.linalg.norm(want)

    def test_nan_stays_in_its_row(self, name):
        K = 96
        a, a_scales, _ = side(20, K, name, 3)
        b, b_scales, _ = side(24, K, name, 4)
        a_scales[7, 1] = b_scales[5, 2] = 255 if name == "mxfp4" else 0x7F
        a[7], b[5] = 0x22, 0x22
        y = self.product(a, a_scales, b, b_scales, np.ones(1, np.float32), format=name)
        want = np.zeros((20, 24), bool)
        want[7], want[:, 5] = True, True
        np.testing.assert_array_equal(np.isnan(y.astype(np.float32)), want)


class TestXla(BlockScaled):
    implementation = "xla"


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no CUDA GPU")
class TestTriton(BlockScaled):
    def product(self, *arrays, **options):
        try:
            return super().product(*arrays, **options)
        except NotImplementedError as error:
            pytest.skip(str(error))


if triton_interpreter.ACTIVE:

    class TestInterpreter(BlockScaled):
        tolerance = (5e-3, 1e-6)  # it truncates to bfloat16

        @pytest.fixture(autouse=True)
        def _interpreted(self, monkeypatch):
            if not triton_interpreter.has_dot_scaled():
                pytest.skip("this Triton's interpreter has no dot_scaled; 3.9's has")
            triton_interpreter.patch(monkeypatch)

        def product(self, *arrays, **options):
            options |= {"config": BlockScaledConfig(16, 16, 64, 4, 1, 2), "compute_capability": 100}
            if arrays[0].shape[0] > 100:
                options["config"] = BlockScaledConfig(128, 64, 128, 4, 1, 8)
            return np.asarray(block_scaled_matmul(*map(jnp.asarray, arrays), **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({0: (4, 40)}, "share K"),
        ({2: (12, 32)}, "multiple of 8"),
        ({1: (4, 4)}, "takes scales"),
        ({4: ()}, r"float32 \(1,\)"),
    ],
)
def test_what_does_not_fit_is_a_value_error(change, message, unchecked):
    shapes = [(4, 32), (4, 2), (8, 32), (8, 2), (1,)]
    for index, shape in change.items():
        shapes[index] = shape
    arrays = [jnp.zeros(s, jnp.float32 if i == 4 else jnp.uint8) for i, s in enumerate(shapes)]
    with pytest.raises(ValueError, match=message):
        block_scaled_matmul(*arrays, implementation="xla")


def test_what_cannot_run_says_why(monkeypatch, unchecked):
    arrays = [jnp.zeros(s, jnp.uint8) for s in ((4, 32), (4, 2), (8, 32), (8, 2))]
    arrays.append(jnp.ones(1))
    with pytest.raises(NotImplementedError, match="not int4/wush"):
        block_scaled_matmul(*arrays, format="int4")
    with pytest.raises(ValueError, match="uint8"):
        block_scaled_matmul(arrays[0].astype(jnp.int8), *arrays[1:])
    pytest.importorskip("triton", reason="triton is not installed")
    monkeypatch.setattr(block_scaled, "OLDEST_WIDENING_NVFP4", (99, 0))
    monkeypatch.setattr(block_scaled._triton, "require", lambda: None)
    if jax.default_backend() != "gpu":
        with pytest.raises(NotImplementedError, match="no CUDA GPU"):
            block_scaled_matmul(*arrays)
    for i in (1, 3):
        arrays[i] = jnp.zeros((len(arrays[i]), 4), jnp.uint8)
    with pytest.raises(NotImplementedError, match="cannot widen E4M3 group scales for sm_90"):
        block_scaled_matmul(*arrays, format="nvfp4", compute_capability=90)
