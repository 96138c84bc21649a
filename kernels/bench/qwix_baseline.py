"""qwix's MXFP4 layer, the peer in JAX: W4A4, groups of 32, dynamic activations, no transform.

Its public core API: `qwix.quantize` (weights once, activations on every call) and
`qwix.dot_general`, which is also what its `PtqProvider` runs inside a model. On a GPU that call is
`jax.nn.scaled_matmul`; before Blackwell, XLA expands this into a product of dequantized operands.
Two choices here are the faster ones for qwix: the result type is bf16 (`PtqProvider` asks for none,
and gets float32 operands), and weights are [N, K], so that nothing is transposed.

Source: github.com/google/qwix (wheel `qwix`, read at version 0.1.8).
"""

from __future__ import annotations

import importlib
from typing import Any

import jax
from jaxtyping import Array, Float

_CONTRACT = (((1,), (1,)), ((), ()))


def _qwix() -> Any:
    try:
        return importlib.import_module("qwix")
    except ImportError as error:
        raise NotImplementedError(f"qwix is not installed ({error}); pip install qwix") from error


def quantize(a: Float[Array, "R K"]) -> Any:
    """A `qwix.QArray`: float4_e2m1fn values [R, K], scales [R, K/32] that are powers of two.

    Raises:
      NotImplementedError: qwix is not installed.
    """
    return _qwix().quantize(a, "mxfp4", channelwise_axes=(0,), tiled_axes={1: 32})


def linear(x: Float[Array, "M K"], weights: Any) -> Float[Array, "M N"]:
    """The layer as qwix runs it, in x's dtype."""
    return _qwix().dot_general(quantize(x), weights, _CONTRACT, preferred_element_type=x.dtype)


def linear_dequantized(x: Float[Array, "M K"], weights: Any) -> Float[Array, "M N"]:
    """The same numbers by qwix's other path, dequantize and multiply, as it takes off a GPU."""
    qwix = _qwix()
    a, b = qwix.dequantize(quantize(x)), qwix.dequantize(weights)
    return jax.lax.dot_general(a, b, _CONTRACT, preferred_element_type=x.dtype)
