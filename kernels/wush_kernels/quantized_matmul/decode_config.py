"""Launch configurations of the few-token product, a pure function of shapes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """A program owns 16 ``rows`` outputs; its ``warps`` deal out the tiles of K."""

    rows: int
    warps: int


def config(M: int, N: int, K: int) -> Config:
    """The default configuration, from measurements on an H200 (132 SMs).

    Up to 16 tokens it takes some 20 warps a multiprocessor to keep the memory busy; where outputs
    alone do not give as many, more warps share the tiles of K. With more tokens two blocks of
    outputs share what is unpacked of the activations, and registers leave room for fewer warps.
    Not worth it: two tiles of weights in flight instead of one, activations fetched a tile ahead or
    brought into the order in which warps read them, warps of a program on different outputs, K
    split over programs.
    """
    del K
    rows = 1 if M <= 16 else 2
    most = 16 if M <= 32 else 8
    warps = 4
    while warps < most and -(-N // (16 * rows)) * warps < 132 * 20 / rows:
        warps *= 2
    return Config(rows, warps)
