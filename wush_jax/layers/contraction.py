"""One description for every linear layer: which axes contract, which are batch, which come out.

Dense, DenseGeneral and Einsum layers all are ``einsum(x, kernel)``. Quantization needs the kernel
as [*batch, K, N] and the input as rows [*batch, *free, K]; a `Contraction` goes there and back.
Kernel axes have roles: ``b`` batch (in x, kernel and output), ``k`` contracted, ``n`` output.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Array, Float

AnyArray = TypeVar("AnyArray", Array, np.ndarray)


def kernel_to_matrix(kernel: AnyArray, roles: str) -> AnyArray:
    """A kernel whose axes have ``roles`` as [*batch, K, N]."""
    order = _order(roles)
    kernel = kernel.transpose(order)
    batch, contracted = roles.count("b"), roles.count("k")
    shape = kernel.shape
    return kernel.reshape(
        *shape[:batch],
        math.prod(shape[batch : batch + contracted]),
        math.prod(shape[batch + contracted :]),
    )


def matrix_to_kernel(matrix: AnyArray, roles: str, shape: Sequence[int]) -> AnyArray:
    """The inverse of `kernel_to_matrix`, for a kernel of ``shape``."""
    order = _order(roles)
    inverse = sorted(range(len(order)), key=order.__getitem__)
    return matrix.reshape([shape[axis] for axis in order]).transpose(inverse)


def _order(roles: str) -> list[int]:
    return sorted(range(len(roles)), key=lambda axis: "bkn".index(roles[axis]))


@dataclasses.dataclass(frozen=True)
class Contraction:
    """``out = einsum(x, kernel)`` by axis labels, one character an axis.

    Attributes:
      x, kernel, out: labels. Every kernel label is in x or in out; every x label in kernel or out.
    """

    x: str
    kernel: str
    out: str

    def __post_init__(self):
        x, kernel, out = set(self.x), set(self.kernel), set(self.out)
        repeated = any(len(set(s)) < len(s) for s in (self.x, self.kernel, self.out))
        if repeated or not (kernel <= x | out and x <= kernel | out and out <= x | kernel):
            raise ValueError(f"'{self}' is not a plain contraction of an input with a kernel")
        if not any(role == "k" for role in self.roles):
            raise ValueError(f"'{self}' contracts nothing: there is no K axis to quantize along")

    def __str__(self) -> str:
        return f"{self.x},{self.kernel}->{self.out}"

    @classmethod
    def dense(cls, ndim: int) -> Contraction:
        """x [..., K] with a kernel [K, N]."""
        return cls.dense_general(ndim, (ndim - 1,), (), 1)

    @classmethod
    def dense_general(
        cls, ndim: int, axis: Sequence[int], batch: Sequence[int], features: int
    ) -> Contraction:
        """Flax's DenseGeneral: kernel [*batch, *axis, *new], output [*batch, *free, *new]."""
        labels = [chr(ord("A") + i) for i in range(ndim + features)]
        x, new = labels[:ndim], labels[ndim:]
        batched, contracted = [x[i] for i in batch], [x[i] for i in axis]
        free = [label for label in x if label not in batched and label not in contracted]
        kernel, out = [*batched, *contracted, *new], [*batched, *free, *new]
        return cls("".join(x), "".join(kernel), "".join(out))

    @property
    def roles(self) -> str:
        """One of b, k, n for each kernel axis."""
        return "".join(
            "n" if label not in self.x else "b" if label in self.out else "k"
            for label in self.kernel
        )

    def rows(self, x: Float[AnyArray, "*x"]) -> Float[AnyArray, "... K"]:
        """[*batch, *free, K]: batch axes first, contracted axes last and flattened."""
        batch, contracted = self._of_role("b"), self._of_role("k")
        order = [self.x.index(label) for label in (*batch, *self._free(), *contracted)]
        x = x.transpose(order) if order != sorted(order) else x
        kept = x.ndim - len(contracted)
        return x.reshape(*x.shape[:kept], math.prod(x.shape[kept:]))

    def output(
        self, y: Float[AnyArray, "... N"], kernel_shape: Sequence[int]
    ) -> Float[AnyArray, "*out"]:
        """Rows of outputs [*batch, *free, N] back in the layer's own axis order."""
        new = self._of_role("n")
        y = y.reshape(*y.shape[:-1], *(kernel_shape[self.kernel.index(label)] for label in new))
        labels = [*self._of_role("b"), *self._free(), *new]
        order = [labels.index(label) for label in self.out]
        return y.transpose(order) if order != sorted(order) else y

    def broadcast_bias(self, bias: AnyArray) -> AnyArray:
        """A bias over the kernel's axes that survive, shaped to add to the output."""
        sizes = iter(bias.shape)
        return bias.reshape([next(sizes) if label in self.kernel else 1 for label in self.out])

    @property
    def contracted_axes(self) -> tuple[int, ...]:
        """Axes of x that are contracted, in the kernel's order."""
        return tuple(self.x.index(label) for label in self._of_role("k"))

    def _of_role(self, role: str) -> list[str]:
        return [label for label, r in zip(self.kernel, self.roles, strict=True) if r == role]

    def _free(self) -> list[str]:
        return [label for label in self.x if label not in self.kernel]
