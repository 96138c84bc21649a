"""Which implementation runs a quantized layer: by device, format and layout, at trace time."""

from __future__ import annotations

import functools
import importlib.util
from typing import NamedTuple

import jax

from wush_jax import formats
from wush_jax.layers.quantized_kernel import QuantizedKernel

# name: what it is, for messages
IMPLEMENTATIONS = {
    "xla": "the reference: exact emulation in XLA, on any device",
    "fp8": "MXFP4 exactly on FP8 tensor cores: Triton kernels around XLA's FP8 matrix product",
    "fp8_mosaic": "as fp8, with a Pallas Mosaic GPU matrix product",
    "fp8_precise": "as fp8, accumulating in full float32",
    "bf16": "4-bit weights expanded to bfloat16 (few tokens: decoded to float16) by Triton kernels",
    "block_scaled": "native block-scaled FP4 tensor cores, by Triton (compiled, not run)",
}
READ_PRIVATE = ("fp8", "fp8_mosaic", "fp8_precise", "bf16")  # take either layout of the weights
_HOPPER, _BLACKWELL = (9, 0), ((10, 0), (10, 3), (12, 0))
_BLOCKS = (16, 32, 64, 128)  # transforms' D that the kernels take


class Device(NamedTuple):
    """A platform ("cpu", "gpu", ...) and a GPU's compute capability, (9, 0) for Hopper."""

    platform: str
    capability: tuple[int, int] | None

    def __str__(self) -> str:
        if self.capability is None:
            return self.platform
        return f"{self.platform} sm_{self.capability[0]}{self.capability[1]}"


class Choice(NamedTuple):
    """An implementation and the reason for it."""

    implementation: str
    reason: str


def default_device() -> Device:
    """Where programs are compiled for by default."""
    return Device(jax.default_backend(), capability())


def capability() -> tuple[int, int] | None:
    """The default GPU's compute capability, None elsewhere."""
    if jax.default_backend() != "gpu":
        return None
    try:
        major, _, minor = str(jax.devices()[0].compute_capability).partition(".")
        return int(major), int(minor)
    except (AttributeError, ValueError):  # not an NVIDIA GPU
        return None


def choose(
    kernel: QuantizedKernel, device: Device | None = None, implementation: str | None = None
) -> Choice:
    """Which implementation ``kernel`` gets on ``device`` (None: the default one), and why.

    Args:
      implementation: a name in `IMPLEMENTATIONS`, or None for the best.

    Raises:
      ValueError: the name is unknown.
      NotImplementedError: the named one cannot run this kernel here; the message says why.
    """
    device = default_device() if device is None else device
    if implementation is None:
        return _best(kernel, device)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    problem = _problem(implementation, kernel, device)
    if problem is not None:
        raise NotImplementedError(f"implementation {implementation!r}: {problem}")
    return Choice(implementation, "asked for by name")


def _best(kernel: QuantizedKernel, device: Device) -> Choice:
    if device.platform != "gpu" or device.capability is None:
        return Choice("xla", f"{IMPLEMENTATIONS['xla']}; no kernels for {device}")
    candidates = ("block_scaled",) if device.capability in _BLACKWELL else ("fp8", "bf16")
    problems = []
    for name in candidates:
        problem = _problem(name, kernel, device)
        if problem is None:
            skipped = f"; not {'; not '.join(problems)}" if problems else ""
            return Choice(name, IMPLEMENTATIONS[name] + skipped)
        problems.append(f"{name}: {problem}")
    return Choice("xla", f"{IMPLEMENTATIONS['xla']}; not {'; not '.join(problems)}")


def _problem(name: str, kernel: QuantizedKernel, device: Device) -> str | None:
    """Why an implementation cannot run a kernel on a device, or None if it can."""
    if name == "xla":
        return None
    if device.platform != "gpu" or device.capability is None:
        return f"it runs on NVIDIA GPUs, this is {device}"
    native = name == "block_scaled"
    if not native and device.capability != _HOPPER:
        return f"it is built for sm_90, this is {device}"
    if native and device.capability not in (_HOPPER, *_BLACKWELL):
        return f"it is built for sm_90, sm_100 and sm_120, this is {device}"
    return missing() or _unfit(name, kernel)


def _unfit(name: str, kernel: QuantizedKernel) -> str | None:
    """Why an implementation cannot read a kernel."""
    fmt, act = kernel.format, kernel.act_format
    names = (fmt.name, None if act is None else act.name)
    pairs = {
        "bf16": (("mxfp4", None), ("nvfp4", None), ("mxfp4", "mxfp4"), ("nvfp4", "nvfp4")),
        "block_scaled": (("mxfp4", "mxfp4"), ("nvfp4", "nvfp4")),
    }.get(name, (("mxfp4", "mxfp4"),))
    if names not in pairs:
        return f"it does not take {fmt} weights with {act or 'float'} activations"
    if kernel.transform_name != "identity" and kernel.block not in _BLOCKS:
        return f"its transforms are {', '.join(map(str, _BLOCKS))} wide, not {kernel.block}"
    if act is not None and act.name == "mxfp4" and act.rule != "wush":
        return f"it quantizes activations by mxfp4/wush, not {act}"
    if kernel.padded_features % 32:
        return f"it takes in-features in multiples of 32, not {kernel.padded_features}"
    if name == "block_scaled":
        return None if kernel.layout == "public" else "it reads the public layout (unprepare)"
    if name.startswith("fp8") and kernel.exact_in != "float8":
        return f"the weights' group scales span more than FP8 holds (exact in {kernel.exact_in})"
    if kernel.exact_in == "float32" or kernel.exponents is None:
        return "the weights' group scales span more than float16 holds"
    if act is not None and None in (formats.activation_scale(act, fmt), fmt.global_scale):
        return None if name == "bf16" else f"the global scales of {fmt} come from data"
    return None


@functools.cache
def missing() -> str | None:
    """What the kernels need and this installation lacks."""
    for module in ("triton", "jax_triton"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed; pip install 'wush-jax[gpu]'"
    return None
