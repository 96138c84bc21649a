"""Convolutions that are products: windows that do not overlap (patches, and 1 x 1)."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
from jax.extend.core import JaxprEqn
from jaxtyping import Array

from wush_jax.frontends.traced import jaxprs


@dataclasses.dataclass(frozen=True)
class Windows:
    """A convolution as a product over windows.

    Attributes:
      size: of the window, along each spatial axis.
      stride: its steps; the window's own size, or any where the window is of size one.
      count: windows along each spatial axis.
      lhs, rhs, out: positions of (batch or out-features, features, *spatial), as JAX has them.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    count: tuple[int, ...]
    lhs: tuple[int, ...]
    rhs: tuple[int, ...]
    out: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Axes of what `split` returns."""
        return 2 + 2 * len(self.size)

    @property
    def contracted(self) -> list[tuple[int, int]]:
        """(axis after `split`, axis of the kernel) that meet."""
        spatial = len(self.size)
        window = [(1 + spatial + i, self.rhs[2 + i]) for i in range(spatial)]
        return [*window, (1 + 2 * spatial, self.rhs[1])]

    def split(self, x: Array) -> Array:
        """x as [batch, *windows, *within a window, features]."""
        batch, features, *spatial = self.lhs
        x = jnp.transpose(x, (batch, *spatial, features))
        for i, (size, stride, count) in enumerate(
            zip(self.size, self.stride, self.count, strict=True)
        ):
            at = (slice(None),) * (1 + i)
            x = x[(*at, slice(0, count * stride if size > 1 else None, 1 if size > 1 else stride))]
        parts = [n for pair in zip(self.count, self.size, strict=True) for n in pair]
        x = x.reshape(x.shape[0], *parts, x.shape[-1])
        n = len(self.size)
        return x.transpose(0, *range(1, 2 * n, 2), *range(2, 2 * n + 1, 2), 2 * n + 1)

    def join(self, y: Array) -> Array:
        """The convolution's output, from [batch, *windows, out-features]."""
        batch, features, *spatial = self.out
        order = [0] * y.ndim
        order[batch], order[features] = 0, y.ndim - 1
        for i, axis in enumerate(spatial):
            order[axis] = 1 + i
        return y.transpose(order)


def of(eqn: JaxprEqn) -> Windows | str:
    """The windows of a convolution, or why it is no product."""
    p = eqn.params
    numbers = p["dimension_numbers"]
    kernel = jaxprs.aval(eqn.invars[1]).shape
    size = tuple(kernel[i] for i in numbers.rhs_spec[2:])
    stride, out = tuple(p["window_strides"]), jaxprs.aval(eqn.outvars[0]).shape
    name = "convolution " + " x ".join(map(str, size))
    plain = (
        p["feature_group_count"] == p["batch_group_count"] == 1
        and all(n == 1 for n in (*p["lhs_dilation"], *p["rhs_dilation"]))
        and all(tuple(pad) == (0, 0) for pad in p["padding"])
    )
    apart = all(n in (1, step) for n, step in zip(size, stride, strict=True))
    if not plain or not apart:
        return name
    count = tuple(out[i] for i in numbers.out_spec[2:])
    return Windows(size, stride, count, numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
