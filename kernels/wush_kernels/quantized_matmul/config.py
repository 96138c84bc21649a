"""Launch configurations of the few-token product, a pure function of shapes."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    """BLOCK_M x BLOCK_N outputs and K tiles of BLOCK_K; K tiles dealt to ``split`` programs."""

    block_m: int
    block_n: int
    block_k: int
    split: int
    num_warps: int
    stages: int
    swap: bool = False


MOST_TOKENS = 64  # above, expanding the weights and an FP8 product is faster


def config(M: int, N: int, K: int) -> Config:
    """The default configuration.

    BLOCK_K = 128 gives 16 words a row, with which the decoded values are already where the tensor
    cores want them (no trip through shared memory). Enough programs for 132 multiprocessors come
    from splitting K; each part keeps at least 8 tiles.
    """
    block_m = 16 if M <= 16 else (32 if M <= 32 else 64)
    block_n = 64
    programs = -(-N // block_n)
    split = 1
    while programs * split < 132 * 3 and K // 128 // (split * 2) >= 8:
        split *= 2
    return Config(block_m, block_n, 128, split, 4, 4)
