"""Where programs run: the platform, and of NVIDIA GPUs the compute capability."""

from __future__ import annotations

from typing import NamedTuple

import jax


class Device(NamedTuple):
    """A platform ("cpu", "gpu", ...) and a GPU's compute capability, (9, 0) for Hopper."""

    platform: str
    capability: tuple[int, int] | None

    def __str__(self) -> str:
        if self.capability is None:
            return self.platform
        return f"{self.platform} sm_{self.capability[0]}{self.capability[1]}"


def default_device() -> Device:
    """Where programs are compiled for by default."""
    return Device(jax.default_backend(), _capability())


def _capability() -> tuple[int, int] | None:
    if jax.default_backend() != "gpu":
        return None
    try:
        major, _, minor = str(jax.devices()[0].compute_capability).partition(".")
        return int(major), int(minor)
    except (AttributeError, ValueError):  # not an NVIDIA GPU
        return None
