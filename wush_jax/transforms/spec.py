"""Transforms named by text, as `Config.candidates` and sweeps list them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from wush_jax.transforms import hadamard
from wush_jax.transforms.families import NAMES


class Spec(NamedTuple):
    """A transform as text names it: "wush", "wush-128", "wush-128@0.75".

    Attributes:
      name: one of `NAMES`.
      block: D; 0 for the default, the format's group size.
      strength: as in `Config`.
    """

    name: str
    block: int
    strength: float


def parse(text: str) -> Spec:
    """Reads "name", "name-D", "name@strength" or "name-D@strength".

    Raises:
      ValueError: it reads otherwise, or there is no such transform.
    """
    match = re.fullmatch(r"([a-z_]+)(?:-(\d+))?(?:@([0-9.]+))?", text)
    if match is None or match[1] not in NAMES:
        raise ValueError(
            f"{text!r} names no transform; write one of {', '.join(NAMES)}, with D and strength as "
            "in 'wush-128@0.75'"
        )
    strength = float(match[3] or 1)
    if not 0 <= strength <= 1:
        raise ValueError(f"{text!r}: a strength lies between 0 and 1")
    block = int(match[2] or 0)
    if block:
        hadamard.signs(block)  # refuses a D that is not a power of two
    return Spec(match[1], block, strength)


def parse_all(texts: Iterable[str]) -> tuple[Spec, ...]:
    """`parse` of each."""
    return tuple(parse(text) for text in texts)
