"""The door to Triton: what reaches JAX's plugin, and which installations are refused by name."""

import re
import shutil
import types
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from wush_kernels import _triton
from wush_kernels.expand import expand
from wush_kernels.quantized_matmul.block_scaled import block_scaled_matmul
from wush_kernels.transform_quantize import transform_quantize_codes, transform_quantize_folded

needs_jax_triton = pytest.mark.skipif(
    _triton.reason_unavailable() is not None, reason=str(_triton.reason_unavailable())
)


def shape(dims, dtype):
    return jax.ShapeDtypeStruct(dims, dtype)


def rows_and_weights(x, t, codes, stored, g):
    rows = transform_quantize_folded(x, t, 1, rows=32, compute_capability=90)
    return rows, expand(codes, stored, jnp.zeros(2, jnp.int32), compute_capability=90)


def native(x, t, codes, stored, g):
    public = transform_quantize_codes(x, t, global_scale=g, compute_capability=100)
    return block_scaled_matmul(*public, codes, stored, g.reshape(1), compute_capability=100)


def delivered(function, *shapes) -> list[str]:
    """What XLA gets of each kernel of ``function``, lowered for CUDA: its launch, with its PTX."""
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))
    module: Any = lowered.compiler_ir()
    found = []
    for operation in module.body.operations:
        for op in operation.regions[0].blocks[0].operations:
            attributes = op.operation.attributes
            if "call_target_name" not in attributes:
                continue
            if "triton_kernel_call" not in str(attributes["call_target_name"]):
                continue
            if "mhlo.backend_config" in attributes:  # jax-triton >= 0.4
                config = attributes["mhlo.backend_config"]["opaque"]
            else:
                config = attributes["backend_config"]
            found.append(zlib.decompress(config.value_bytes).decode("latin1"))
    return found


@needs_jax_triton
@pytest.mark.parametrize(("function", "target"), [(rows_and_weights, 90), (native, 100)])
def test_lowering_for_cuda(function, target):
    """A computation of two kernels lowers without a GPU, to PTX that the installed ptxas reads."""
    x, t = shape((17, 512), jnp.bfloat16), shape((16, 32, 32), jnp.bfloat16)
    codes, stored = (shape((256, n), jnp.uint8) for n in (256, 16))
    launches = delivered(function, x, t, codes, stored, shape((), jnp.float32))
    assert len(launches) == 2
    for launch in launches:
        assert re.findall(r"^\.target sm_(\d+)", launch, re.MULTILINE) == [str(target)]
        [(major, minor)] = re.findall(r"^\.version (\d+)\.(\d+)", launch, re.MULTILINE)
        assert int(major + minor) <= (_triton.ptx_version() or 999)


def test_ptxas_is_asked():
    """The binding that says what JAX's ptxas reads is private: here it shows when it goes."""
    pytest.importorskip("jax_cuda13_plugin", reason="JAX's CUDA plugin is not installed")
    if shutil.which("ptxas") is None:
        pytest.skip("no ptxas")
    assert (_triton.ptx_version() or 0) >= 80


class TestReasons:
    """`reason_unavailable`, and through it `call`, of installations that cannot work."""

    @pytest.fixture(autouse=True)
    def uncached(self, monkeypatch):
        if _triton.reason_unavailable() is not None:
            pytest.skip(str(_triton.reason_unavailable()))
        plain = _triton.reason_unavailable.__wrapped__
        monkeypatch.setattr(_triton, "reason_unavailable", plain)

    def test_no_plugin(self, monkeypatch):
        from jaxlib import gpu_triton

        monkeypatch.delattr(gpu_triton, "TritonKernelCall")
        with pytest.raises(NotImplementedError, match="has no CUDA plugin"):
            _triton.require()

    def test_a_triton_that_jax_triton_cannot_use(self, monkeypatch):
        """As jax-triton 0.4.1 with triton 3.6: it imports, with a stub for the backend."""
        from jax_triton import triton_lib

        stub = types.SimpleNamespace(CUDABackend=types.SimpleNamespace)
        monkeypatch.setattr(triton_lib, "cb", stub)
        reason = r"jax-triton [\d.]+ and triton [\d.]+ do not work together.* needs triton>=3"
        with pytest.raises(NotImplementedError, match=reason):
            _triton.require()

    def test_ptx_that_cannot_be_assembled(self, monkeypatch):
        """As jax-triton 0.3.1, which cannot be told a PTX version, with triton 3.9."""
        monkeypatch.setattr(_triton, "_parameters", lambda: frozenset({"out_shape"}))
        monkeypatch.setattr(_triton, "ptx_version", lambda: 71)
        with pytest.raises(NotImplementedError, match=r"write PTX \d\.\d, .* reads up to 7\.1"):
            _triton.require()

    def test_without_a_ptxas_nothing_is_refused(self, monkeypatch):
        monkeypatch.setattr(_triton, "_parameters", lambda: frozenset({"out_shape"}))
        monkeypatch.setattr(_triton, "ptx_version", lambda: None)
        _triton.require()


def test_keywords_of_both_versions(monkeypatch):
    monkeypatch.setattr(_triton, "ptx_version", lambda: 90)
    monkeypatch.setattr(_triton, "_parameters", lambda: frozenset({"out_shape"}))
    assert _triton._version_keywords("out", False) == {
        "out_shape": "out",
        "enable_fp_fusion": False,
    }
    monkeypatch.setattr(_triton, "_parameters", lambda: frozenset({"out_type", "backend_options"}))
    assert _triton._version_keywords("out", True) == {
        "out_type": "out",
        "backend_options": {"enable_fp_fusion": True, "ptx_version": 90},
    }
    monkeypatch.setattr(_triton, "ptx_version", lambda: None)
    assert _triton._version_keywords("out", True)["backend_options"] == {"enable_fp_fusion": True}
