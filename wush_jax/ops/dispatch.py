"""Which implementation runs a quantized layer: the one table, asked when a program is traced."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp

from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops import device as devices
from wush_jax.ops.device import Device
from wush_jax.ops.implementations.base import Implementation
from wush_jax.ops.implementations.table import IMPLEMENTATIONS, REFERENCE


class Choice(NamedTuple):
    """The name of an implementation, and the reason for it."""

    implementation: str
    reason: str


def choose(
    kernel: QuantizedKernel,
    device: Device | None = None,
    implementation: str | None = None,
    dtype: jnp.dtype | None = None,
) -> Choice:
    """Which implementation ``kernel`` gets on ``device`` (None: the default one), and why.

    Args:
      implementation: a name in `IMPLEMENTATIONS`, or None for the best.
      dtype: of the activations; None for one that all take.

    Raises:
      ValueError: the name is unknown.
      NotImplementedError: the named one cannot run this kernel here; the message says why.
    """
    device = devices.default_device() if device is None else device
    if implementation is None:
        return _best(kernel, device, dtype)
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(
            f"unknown implementation {implementation!r}; there are {', '.join(IMPLEMENTATIONS)}"
        )
    problem = IMPLEMENTATIONS[implementation].problem(kernel, device, dtype)
    if problem is not None:
        raise NotImplementedError(f"implementation {implementation!r}: {problem}")
    return Choice(implementation, "asked for by name")


def chosen(kernel: QuantizedKernel, implementation: str | None, dtype: jnp.dtype) -> Implementation:
    """The implementation itself, on the default device. Raises: as `choose`."""
    choice = choose(kernel, implementation=implementation, dtype=dtype)
    return IMPLEMENTATIONS[choice.implementation]


def _best(kernel: QuantizedKernel, device: Device, dtype: jnp.dtype | None) -> Choice:
    candidates = [each for each in IMPLEMENTATIONS.values() if each.unasked(device)]
    if candidates == [REFERENCE]:
        return Choice(REFERENCE.name, f"{REFERENCE.summary}; no kernels for {device}")
    problems: list[str] = []
    for each in candidates:
        problem = each.problem(kernel, device, dtype)
        if problem is None:
            skipped = f"; not {'; not '.join(problems)}" if problems else ""
            return Choice(each.name, each.summary + skipped)
        problems.append(f"{each.name}: {problem}")
    raise AssertionError("the reference takes every layer")
