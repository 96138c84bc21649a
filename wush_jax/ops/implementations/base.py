"""`Implementation`: a way to run a quantized layer, which judges itself and runs.

A new one is a file beside this with a subclass, and a line in `table`. The following hold:

* `problem` decides from what is known when a program is traced: the kernel's formats and layout,
  the device, the activations' dtype. What it lets pass, `encode` and `matmul` run.
* what depends on the number of tokens is a `Regime`; `explain` prints the very table that runs.
* `encode` and `matmul` agree with the reference (`xla`) code by code.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wush_jax.layers.quantized_kernel import QuantizedKernel
from wush_jax.ops.device import Device


class Regime(NamedTuple):
    """What runs up to a number of tokens.

    Attributes:
      most: tokens, M; None: any number.
      what: the products in words, for `explain`.
      encode: (x [M, K], kernel, backend) -> rows.
      product: (rows, kernel, backend, dtype) -> y [M, N].
    """

    most: int | None
    what: str
    encode: Callable[..., Any]
    product: Callable[..., Array]

    def __str__(self) -> str:
        return self.what if self.most is None else f"up to {self.most} tokens {self.what}"


class Implementation(abc.ABC):
    """One way to run a layer; stateless, and equal to itself alone.

    Attributes:
      name: what ``implementation=`` takes.
      summary: what it is, for messages.
      rows: the kind of rows that `encode` makes; others with the same kind can multiply them.
      private: whether it reads the private layout of `wush_jax.prepare` as well as the public one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    rows: ClassVar[str]
    private: ClassVar[bool] = False

    @abc.abstractmethod
    def problem(
        self, kernel: QuantizedKernel, device: Device, dtype: jnp.dtype | None = None
    ) -> str | None:
        """Why it cannot run a kernel on a device with activations of a dtype; None if it can."""

    def unasked(self, device: Device) -> bool:
        """Whether it is a candidate on a device where nobody asks for it by name."""
        return True

    @abc.abstractmethod
    def regimes(self, kernel: QuantizedKernel) -> tuple[Regime, ...]:
        """What runs, by the number of tokens, fewest first; the last one takes any number."""

    @abc.abstractmethod
    def encode(self, x: Float[Array, "*tokens K"], kernel: QuantizedKernel) -> Any:
        """Q(x Tᵀ) in the form that `matmul` reads: a pytree of arrays [*batch, *tokens, ...]."""

    @abc.abstractmethod
    def matmul(
        self,
        encoded: Any,
        source: Float[Array, "*tokens K"],
        kernel: QuantizedKernel,
        dtype: jnp.dtype,
    ) -> Float[Array, "*tokens N"]:
        """Encoded rows times a kernel: float32 sums, scaled once at the end, then cast.

        Args:
          encoded: from `encode`.
          source: x, which carries the gradient where ``encoded`` does not.
        """

    def prepared(self, kernel: QuantizedKernel, *, keep_fp8: bool) -> QuantizedKernel:
        """The kernel as this implementation reads it fastest, see `wush_jax.prepare`."""
        return kernel

    def regime(self, kernel: QuantizedKernel, tokens: int) -> Regime:
        """The first regime that takes so many tokens."""
        return next(r for r in self.regimes(kernel) if r.most is None or tokens <= r.most)


def per_batch(function: Callable[..., Any], kernel: QuantizedKernel) -> Callable[..., Any]:
    """``function`` mapped over the kernel's batch axes, which lead in all its arguments."""
    for _ in range(kernel.batch_ndim):
        function = jax.vmap(function)
    return function


def by_rows(function: Callable[..., Any], *arguments: Any) -> Callable[[Any], Any]:
    """``function(rows, *arguments)`` of rows [M, ...] as one of [*tokens, ...]."""

    @functools.wraps(function)
    def run(rows: Any) -> Any:
        tokens = jax.tree.leaves(rows)[0].shape[:-1]
        flat = jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), rows)
        out = function(flat, *arguments)
        return jax.tree.map(lambda leaf: leaf.reshape(*tokens, leaf.shape[-1]), out)

    return run
