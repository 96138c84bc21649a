"""Launch configurations of the few-token product, a pure function of shapes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """A warp owns 16 ``rows`` outputs; ``row_warps`` of a program's ``warps`` own different ones.

    The warps of the same rows, in ``split`` programs, deal out the tiles of K. ``depth`` tiles of
    weights are in flight ahead of the one at work. A program takes at most ``tokens`` tokens.
    """

    rows: int
    warps: int
    row_warps: int = 1
    depth: int = 1
    split: int = 1
    tokens: int = 64
    ahead: bool = False


def config(M: int, N: int, K: int) -> Config:
    """The default configuration."""
    rows = 2 if N >= 8192 or M > 16 else 1
    warps = 4
    while warps < 16 and -(-N // (16 * rows)) * warps < 132 * 12 and 4 * warps <= -(-K // 128):
        warps *= 2
    return Config(rows, warps)
