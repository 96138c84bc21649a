"""`QuantizedKernel`: the pytree that stands in the params where a float kernel stood."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, BFloat16, Float, Int, Num

from wush_jax.formats import Format, Quantized, dequantize
from wush_jax.formats import private_layout as layouts
from wush_jax.layers import contraction, stacking
from wush_jax.layers.stacking import StackAxes
from wush_jax.transforms import hadamard as _hadamard


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
    """A linear layer's kernel in 4 (or 8) bits, with the transform its input needs.

    The layer computes y ≈ Q(x Tᵀ) Q(T⁻ᵀ W) (arXiv 2512.00956); elements and scales are those of the
    OCP Microscaling Formats (MX) v1.0 and of `wush_jax.formats.format`. The following hold:

    * every leaf but ``transform`` has shape [*stack, *batch, rows, columns]; ``transform`` has one
      axis more. ``stack`` are the axes of ``nn.scan`` / ``nn.vmap`` over layers, which slice every
      leaf alike; ``batch`` are the kernel's own batch axes (experts);
    * no leaf but ``expanded`` is a float copy of the weights;
    * T⁻ᵀ was solved against the bfloat16 T stored here, so T⁻ᵀ and T pair to float32 rounding.

    Attributes:
      codes: uint8 [N, K/2], two per byte, low nibble = even index along K (int8: int8 [N, K]).
      scales: [N, K/G], E8M0 or E4M3 bits as uint8, or bfloat16.
      global_scale: float32 [1, 1], a multiplier.
      act_global_scale: float32 [1, 1], the activations' multiplier; None if weight-only. Where
        `formats.activation_scale` has a constant for the two formats, it is that constant.
      transform: T, bfloat16 [C, D, D]; None for identity and Hadamard, which need no storage.
      exponents: int32 [1, 2], shift of the activations and offset of the weights that fast kernels
        use, see `wush_jax.formats.exactness`; None: no fast kernel takes these formats.
      expanded: the weights in float8_e4m3fn [N, K], as FP8 products of many tokens read them; None
        (the default): they are expanded for each product. Only `wush_jax.prepare` sets it.
      format, act_format: number formats of weights and activations (None: kept in float).
      transform_name, block: which transform, and D.
      kernel_shape, roles: the float kernel's shape (without ``stack``) and its axes' roles.
      dtype: the float kernel's dtype, as a string.
      stack_axes: where the stacked axes are in every leaf, see `wush_jax.layers.stacking`.
      shared_input: module path of the first layer that reads the same array and shares T, or None.
      exact_in: the narrowest type that holds the weights exactly times one power of two, one of
        `exponents.TYPES`: decided when they were quantized, it decides which kernels can run.
      layout: "public", or "private" for codes and scales in the order of the few-token GPU kernel
        (`wush_jax.prepare`).
    """

    # Shapes are not annotated: stacked axes lie where ``stack_axes`` says, not always in front.
    codes: Num[Array, "*_"]
    scales: Num[Array, "*_"]
    global_scale: Float[Array, "*_"]
    act_global_scale: Float[Array, "*_"] | None
    transform: BFloat16[Array, "*_"] | None
    exponents: Int[Array, "*_"] | None = dataclasses.field(kw_only=True, default=None)
    expanded: Float[Array, "*_"] | None = dataclasses.field(kw_only=True, default=None)
    format: Format = dataclasses.field(metadata={"static": True})
    act_format: Format | None = dataclasses.field(metadata={"static": True})
    transform_name: str = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})
    kernel_shape: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    roles: str = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    stack_axes: StackAxes = dataclasses.field(default=(), metadata={"static": True})
    shared_input: str | None = dataclasses.field(default=None, metadata={"static": True})
    exact_in: str = dataclasses.field(default="float32", metadata={"static": True})
    layout: str = dataclasses.field(default="public", metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the float kernel this stands for, stacked axes included."""
        shape = list(self.kernel_shape)
        stacked = stacking.positions(self._stack, self.codes.ndim)
        where = stacking.positions(self._stack, len(shape) + len(stacked))
        for axis, source in sorted(zip(where, stacked, strict=True)):
            shape.insert(axis, self.codes.shape[source])
        return tuple(shape)

    @property
    def ndim(self) -> int:
        """Axes of the float kernel, stacked ones included."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Weights of the float kernel, stacked axes included."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all leaves, the transform's included."""
        return sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in jax.tree.leaves(self))

    @property
    def _stack(self) -> StackAxes:
        """``stack_axes``, or none for one slice of a stack (inside a scan, say)."""
        stacked = self.codes.ndim > self.batch_ndim + 2
        return (self.stack_axes or (0,)) if stacked else ()

    @property
    def batch_ndim(self) -> int:
        """How many leading axes of a leaf are the kernel's own batch axes."""
        return self.roles.count("b")

    @property
    def hadamard_block(self) -> int | None:
        """D where the transform is Hadamard's, which is not stored; None otherwise."""
        return self.block if self.transform_name == "hadamard" else None

    @property
    def features(self) -> int:
        """K before padding."""
        return math.prod(
            n for n, role in zip(self.kernel_shape, self.roles, strict=True) if role == "k"
        )

    @property
    def padded_features(self) -> int:
        """K as stored: whole blocks and groups."""
        codes = [
            n
            for axis, n in enumerate(self.codes.shape)
            if axis not in stacking.positions(self._stack, self.codes.ndim)
        ]
        return codes[-1] * (2 if self.format.packed else 1)

    @property
    def outputs(self) -> int:
        """N."""
        return math.prod(
            n for n, role in zip(self.kernel_shape, self.roles, strict=True) if role == "n"
        )

    def values(self) -> Float[Array, "*stack N K"]:
        """Element times group scale, float32: the format's numbers without the global scale."""
        public = self.public()
        return dequantize(Quantized(public.codes, public.scales, jnp.float32(1), self.format))

    def public(self) -> QuantizedKernel:
        """The same kernel with codes and scales in the public layout."""
        return self._with_layout("public", layouts.to_public)

    def private(self) -> QuantizedKernel:
        """The same kernel in the private layout of the few-token GPU kernel, see `layout`.

        Raises:
          ValueError: N is not a multiple of 16 or K not of 128.
        """
        return self._with_layout("private", layouts.to_private)

    def _with_layout(self, name: str, convert: Callable) -> QuantizedKernel:
        if self.layout == name:
            return self
        codes, scales = (stacking.to_front(x, self._stack) for x in (self.codes, self.scales))
        converted = (stacking.from_front(x, self._stack) for x in convert(codes, scales))
        codes, scales = converted
        return dataclasses.replace(self, codes=codes, scales=scales, layout=name)

    def dequantize(self) -> Float[Array, "*kernel"]:
        """The float kernel in the ORIGINAL basis, Tᵀ Q(T⁻ᵀ W), in the kernel's dtype."""
        if self._stack:
            front = jax.tree.map(lambda leaf: stacking.to_front(leaf, self._stack), self)
            dense = _dequantize
            for _ in self._stack:
                dense = jax.vmap(dense)
            return stacking.from_front(dense(front), self._stack)
        return _dequantize(self)


def _dequantize(kernel: QuantizedKernel) -> Float[Array, "*kernel"]:
    weights = (kernel.values() * kernel.global_scale).mT  # [*batch, K, N]
    weights = inverse_rotate(weights, kernel)[..., : kernel.features, :]
    weights = contraction.matrix_to_kernel(weights, kernel.roles, kernel.kernel_shape)
    return weights.astype(kernel.dtype)


def inverse_rotate(weights: Float[Array, "*stack K N"], kernel: QuantizedKernel) -> Array:
    """Tᵀ A per block: from the transformed basis back to the layer's own, in float32."""
    blocks = weights.reshape(
        *weights.shape[:-2], -1, kernel.block, weights.shape[-1]
    )  # [*stack, C, D, N]
    if kernel.transform_name == "hadamard":
        blocks = jnp.matmul(_hadamard.matrix(kernel.block), blocks, precision="highest")
    elif kernel.transform is not None:
        t = kernel.transform.astype(jnp.float32)
        blocks = jnp.matmul(t.mT, blocks, precision="highest")
    return blocks.reshape(weights.shape)


def is_quantized(leaf: object) -> bool:
    """For ``is_leaf=`` in `jax.tree` functions."""
    return isinstance(leaf, QuantizedKernel)


def stack(kernels: Sequence[QuantizedKernel], axis: int = 0) -> QuantizedKernel:
    """One kernel whose leaves are those of ``kernels`` stacked, as ``nn.scan`` slices them."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis), *kernels)
    return dataclasses.replace(stacked, stack_axes=(axis,))
