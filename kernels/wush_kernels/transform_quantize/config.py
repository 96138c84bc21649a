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


MULTIPROCESSORS = 132  # of an H100 or H200
CACHED = 2**25  # elements of x that, with the result, fit in 60 MB of L2


def config(M: int, K: int, D: int, itemsize: int = 2) -> Config:
    """The default configuration, measured on an H200 where a figure is given (bf16 to E5M2).

    Bound by memory or, with few tokens, by latency:

    * M <= 64: one small tile a program and one warp for every 32 columns; M = 16, K = 4096 takes
      2.85 us, against 5.2 us with 128 columns and 4 warps.
    * x and result in the cache (4096 x 4096: 2.98 TB/s, against 2.26 with 128 columns): the
      narrowest tile and tall ones of one step, since re-reading T is cheap there and the many
      programs hide one another's latency.
    * larger (16384 x 14336: 3.62 TB/s): 64 columns, 4 row tiles a program with the next one's load
      in flight, so that T is read once for 256 rows.
    * D >= 64 has D x D tiles of T worth keeping: up to 8 row tiles, as long as every
      multiprocessor has a program (4096 x 4096, D = 128: 20.1 us with 8, 3 stages).
    """
    narrow = max(D, 32)
    if M <= 64:
        return Config(narrow, 16, 1, narrow // 32, 1)
    if narrow >= 64:
        row_tiles = 1
        while row_tiles < 8 and _programs(M, K, narrow, 64 * row_tiles * 2) >= MULTIPROCESSORS:
            row_tiles *= 2
        stages = min(row_tiles, 3 if D == 128 and itemsize == 2 else 2)
        return Config(narrow, 64, row_tiles, 4, stages)
    if M * K <= CACHED or K % 64:
        return Config(narrow, 128 if M > 512 and itemsize == 2 else 64, 1, 4, 1)
    return Config(64, 64, 4, 4, 2)


def _programs(M: int, K: int, width: int, rows: int) -> int:
    return (K // width) * (-(-M // rows))
