"""`transform_quantize` against `wush_jax.formats`: in XLA, in Triton's interpreter, on a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import triton_interpreter
from tests.support.transform_quantize_base import TransformQuantize
from tests.support.transform_quantize_data import CASES
from wush_kernels import _triton
from wush_kernels.transform_quantize import (
    transform_quantize_codes,
    transform_quantize_folded,
    transform_quantize_values,
)
from wush_kernels.transform_quantize.config import Config, config


class TestXla(TransformQuantize):
    """The reference itself: built from `formats`, so a few cases are enough."""

    implementation = "xla"
    thorough = False
    cases, formats = CASES[::5], ("mxfp4", "nvfp4/nvidia")

    def run(self, *args, **options):
        with jax.default_device(jax.devices("cpu")[0]):
            return super().run(*args, **options)


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="no CUDA GPU")
class TestTriton(TransformQuantize):
    def poison(self):
        jax.block_until_ready([jnp.full(1 << 22, 0xFF, jnp.uint8) for _ in range(4)])

    def test_the_kernel_ran(self):
        x = jnp.ones((3, 64), jnp.bfloat16)
        text = jax.jit(lambda x: transform_quantize_folded(x, None)).lower(x).compile().as_text()
        assert "triton_kernel_call" in str(text)


if triton_interpreter.ACTIVE:

    @pytest.mark.usefixtures("interpreted")
    class TestInterpreter(TransformQuantize):
        cases = CASES[::5] + CASES[8:9]  # every M, D, dtype and format
        features = 128
        thorough = False
        converts_to_e5m2 = False
        rounds_to_bfloat16 = False

        @pytest.fixture
        def interpreted(self, monkeypatch):
            triton_interpreter.patch(monkeypatch)

        def run(self, function, x, t=None, global_scale=None, **options):
            """In few programs, which are what takes time, but with a loop and a tail of rows."""
            width = 128 if x.shape[1] % 128 == 0 else 32
            options["config"] = Config(width, 16 if len(x) < 64 else 256, 2, 4, 1)
            x, t = jax.tree.map(jnp.asarray, (x, t))
            y = function(x, t, global_scale=global_scale, **options)
            return jax.tree.map(np.asarray, y)


def test_configurations_cover_every_shape():
    for M in (1, 17, 1000, 4096, 16384):
        for K, D in ((4096, 32), (4128, 32), (14336, 128), (96, 16), (192, 64)):
            for itemsize in (2, 4):
                c = config(M, K, D, itemsize)
                assert K % c.width == 0
                assert c.width % max(D, 32) == 0
                assert c.block_m >= 16


def test_measured_configurations():
    tuples = [
        tuple(vars(config(M, K, D)).values())
        for M, K, D in ((16384, 14336, 32), (4096, 4096, 32), (4096, 4096, 128), (16, 4096, 32))
    ]
    assert tuples == [(64, 64, 4, 4, 2), (32, 128, 1, 4, 1), (128, 64, 8, 4, 3), (32, 16, 1, 1, 1)]


BAD = [
    (((2, 64), (1, 32, 32)), {}, "transform is bfloat16"),
    (((2, 40), None), {}, "multiple of 32"),
    (((2, 64), (2, 32, 32)), {"hadamard_block": 32}, "not both"),
    (((2, 64), None), {"hadamard_block": 8}, "16, 32, 64 or 128, not 8"),
    (((2, 64), None), {"rows": 24}, "multiple of 16"),
    (((33, 64), None), {"rows": 32}, "at least M = 33"),
    (((2, 64), None), {"format": "nvfp4/nvidia"}, "derives its global scale"),
    (((2, 64), None), {"format": "nvfp4", "multiplier": 2.0}, "takes global_scale"),
    (((2, 64), None), {"global_scale": 0.0}, "positive normal"),
    (((2, 64), None), {"global_scale": np.ones((2, 1), np.float32)}, "one number"),
    (((2, 64), None), {"implementation": "cuda"}, "unknown implementation"),
]


@pytest.mark.parametrize(("shapes", "options", "message"), BAD)
def test_what_does_not_fit_is_a_value_error(shapes, options, message, unchecked):
    x = jnp.ones(shapes[0])
    t = None if shapes[1] is None else jnp.ones(shapes[1], jnp.bfloat16)
    with pytest.raises(ValueError, match=message):
        transform_quantize_codes(x, t, **{"implementation": "xla", **options})


def test_what_the_kernels_do_not_do():
    x = jnp.ones((2, 64))
    with pytest.raises(NotImplementedError, match="not to int4/wush"):
        transform_quantize_codes(x, None, format="int4")
    with pytest.raises(NotImplementedError, match="transform_quantize_folded"):
        transform_quantize_values(x, None, format="mxfp4")
    with pytest.raises(ValueError, match="float16 or bfloat16"):
        transform_quantize_values(x, None, format=None, dtype=jnp.float32)
    with pytest.raises(ValueError, match="float8_e5m2 or float16"):
        transform_quantize_folded(x, None, dtype=jnp.bfloat16)
    with pytest.raises(ValueError, match="at most 100"):
        transform_quantize_folded(x, None, 101)


def test_without_triton_the_reason_is_given(monkeypatch):
    monkeypatch.setattr(_triton, "reason_unavailable", lambda: "triton is away")
    with pytest.raises(NotImplementedError, match="triton is away"):
        transform_quantize_folded(jnp.ones((2, 64)), None)
