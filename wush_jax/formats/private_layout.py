"""The private weight layout of the few-token kernel: the same bits in the order a warp reads them.

* Words (8 codes): the even columns' codes in the low half, the odd ones' in the high half, and in
  each half magnitudes at bits 9, 6, 3, 0 and signs at bits 15, 12, 14, 13, so that one or two
  shifts turn a pair of codes into a pair of float16 (`wush_kernels.words_ptx.PRIVATE`).
* Order: [N / 16, K / 128, 2, 8, 4, 16 bytes], rows 16 b + 8 h + g, columns 128 t + 32 j onwards:
  what lane 4 g + j reads of block b and tile t is one 16-byte piece of 512 consecutive bytes.

* Scales: [N / 16, K / 128, 8, 2, 4 or 8 bytes], rows 16 b + 8 h + g: one short piece a lane too.

Arrays keep their shapes and dtypes. Both directions are exact. Leading axes are mapped over.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, UInt8, UInt32

_MAGNITUDE_AT = (9, 6, 3, 0)
_SIGN_AT = (15, 12, 14, 13)


NAMES = ("public", "private")


def check(name: str, N: int, K: int) -> None:
    """Raises ValueError: no such layout, or weights [N, K] have none of that name."""
    if name not in NAMES:
        raise ValueError(f"codes_layout is 'public' or 'private', not {name!r}")
    if name == "private" and not fits(N, K):
        raise ValueError(f"no private layout for N={N} (16 | N), K={K} (128 | K)")


def fits(N: int, K: int) -> bool:
    """Whether weights [N, K] have a private layout: whole blocks of 16 rows and tiles of 128."""
    return N % 16 == 0 and K % 128 == 0


def to_private(
    codes: UInt8[Array, "*b N Kb"], scales: UInt8[Array, "*b N Kg"]
) -> tuple[UInt8[Array, "*b N Kb"], UInt8[Array, "*b N Kg"]]:
    """Public packed codes and scales in the private layout.

    Raises:
      ValueError: N is not a multiple of 16 or K not of 128.
    """
    N, K = _check(codes)
    lead = codes.shape[:-2]
    pieces = _map_words(codes, _word_to_private).reshape(*lead, N // 16, 2, 8, K // 128, 4, 16)
    groups = scales.reshape(*lead, N // 16, 2, 8, K // 128, -1)
    return (
        jnp.moveaxis(pieces, -3, -5).reshape(codes.shape),
        jnp.swapaxes(jnp.moveaxis(groups, -2, -4), -3, -2).reshape(scales.shape),
    )


def to_public(
    codes: UInt8[Array, "*b N Kb"], scales: UInt8[Array, "*b N Kg"]
) -> tuple[UInt8[Array, "*b N Kb"], UInt8[Array, "*b N Kg"]]:
    """The inverse of `to_private`.

    Raises:
      ValueError: N is not a multiple of 16 or K not of 128.
    """
    N, K = _check(codes)
    lead = codes.shape[:-2]
    pieces = jnp.moveaxis(codes.reshape(*lead, N // 16, K // 128, 2, 8, 4, 16), -5, -3)
    groups = scales.reshape(*lead, N // 16, K // 128, 8, 2, -1)
    groups = jnp.moveaxis(jnp.swapaxes(groups, -3, -2), -4, -2)
    return _map_words(pieces.reshape(codes.shape), _word_to_public), groups.reshape(scales.shape)


def _check(codes: Array) -> tuple[int, int]:
    N, K = codes.shape[-2], 2 * codes.shape[-1]
    if codes.dtype != jnp.uint8 or not fits(N, K):
        raise ValueError(
            f"the private layout takes uint8 [..., N, K/2] with N a multiple of 16 and K of 128, "
            f"not {codes.dtype} {codes.shape} (N={N}, K={K})"
        )
    return N, K


def _map_words(codes: Array, function) -> Array:
    words = lax.bitcast_convert_type(codes.reshape(*codes.shape[:-1], -1, 4), jnp.uint32)
    return lax.bitcast_convert_type(function(words), jnp.uint8).reshape(codes.shape)


def _word_to_private(word: UInt32[Array, "*s"]) -> UInt32[Array, "*s"]:
    out = jnp.zeros_like(word)
    for k in range(8):
        code, half = (word >> (4 * k)) & 15, 16 * (k % 2)
        out |= (code & 7) << (half + _MAGNITUDE_AT[k // 2])
        out |= (code >> 3) << (half + _SIGN_AT[k // 2])
    return out


def _word_to_public(word: UInt32[Array, "*s"]) -> UInt32[Array, "*s"]:
    out = jnp.zeros_like(word)
    for k in range(8):
        half = 16 * (k % 2)
        magnitude = (word >> (half + _MAGNITUDE_AT[k // 2])) & 7
        sign = (word >> (half + _SIGN_AT[k // 2])) & 1
        out |= (magnitude | sign << 3) << (4 * k)
    return out
