"""Launch configurations of `transform_quantize`, a pure function of shapes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """W columns and BLOCK_M x ROW_TILES rows a program; see the kernel's glossary."""

    width: int
    block_m: int
    row_tiles: int
    num_warps: int
    stages: int


def width(K: int, D: int, most: int = 128) -> int:
    """The widest tile, at most ``most``, of whole groups and blocks that divides K."""
    w = max(D, 32)
    while w * 2 <= most and K % (w * 2) == 0:
        w *= 2
    return w


def config(M: int, K: int, D: int, itemsize: int = 2) -> Config:
    """The default configuration.

    Memory-bound: what matters is wide rows (256 bytes of bf16) and enough programs to fill 132
    multiprocessors several times. T of a tile (at most 32 KB) is read once a program, so a program
    walks down a few row tiles when there are many.
    """
    w = width(K, D, 128 if itemsize == 2 else 64)
    if M <= 64:
        return Config(w, 16, 1, 4, 1)  # decode: one tile, latency only
    tiles = -(-M // 64)
    row_tiles = 1
    while row_tiles < 8 and (K // w) * (tiles // (2 * row_tiles)) >= 132 * 6:
        row_tiles *= 2
    return Config(w, 64, row_tiles, 4, 2 if row_tiles > 1 else 1)
