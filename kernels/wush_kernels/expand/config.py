"""Launch configurations of `expand`, a pure function of shapes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """``pieces`` stores of 16 bytes a thread, ``warps`` warps a program."""

    pieces: int
    warps: int


def config(N: int, K: int) -> Config:
    """One store a thread: on an H200 more of them are 0 to 10 % slower (24.5 us against 26.3)."""
    del N, K
    return Config(1, 4)
